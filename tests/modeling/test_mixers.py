"""Mixers against other people's, and against their own slow paths."""

import pytest
import torch
from modeling_ftmamba.scans import scan_named
from torch import nn
from torch.nn import functional as F
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as TransformersMambaMixer

from modeling_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.mixers import MambaMixer
from modeling_ftmamba.network import FTMambaLayer

from .conftest import shake

SIZES = {"hidden_size": 24, "state_size": 6, "conv_kernel": 3, "num_attention_heads": 4}


def tower(**fields):
    return FTMambaTowerConfig(columns=[], **(SIZES | fields))


def fresh_layer(config):
    layer = FTMambaLayer(config, 1, scan_named("sequential"))
    if config.mixer == "mamba":
        layer.mixer.reset_parameters()
    return layer


def hidden(length=9):
    return torch.randn(3, length, 24, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_mamba_equals_the_mixer_of_transformers_with_its_weights(length):
    theirs = TransformersMambaMixer(
        MambaConfig(
            hidden_size=24,
            state_size=6,
            conv_kernel=3,
            expand=2,
            time_step_rank=2,
            use_mambapy=False,
        ),
        layer_idx=0,
    )
    shake(theirs)
    ours = MambaMixer(tower(), scan_named("sequential"))
    ours.load_state_dict(theirs.state_dict())
    x = hidden(length).float().detach()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_initial_steps_lie_in_their_range():
    torch.manual_seed(0)
    mixer = MambaMixer(tower(time_step_min=0.01, time_step_max=0.2), scan_named("sequential"))
    mixer.reset_parameters()
    steps = F.softplus(mixer.dt_proj.bias)
    assert 0.0099 < steps.min() < 0.02
    assert 0.1 < steps.max() < 0.2001
    torch.testing.assert_close(mixer.decay_rates()[0], -torch.arange(1.0, 7.0))


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_last_token_alone_equals_the_last_of_all_with_gradients(mixer, norm_position, length):
    config = tower(mixer=mixer, norm_position=norm_position)
    layer = shake(fresh_layer(config).double()).eval()
    x = hidden(length)
    outputs = layer(x)[:, -1], layer.forward_last(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-12)
    wanted = [x, *layer.parameters()]
    full, last = (torch.autograd.grad(out.square().sum(), wanted) for out in outputs)
    for a, b in zip(last, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_mamba_never_looks_ahead_and_attention_does():
    for mixer, looks_ahead in (("mamba", False), ("attention", True)):
        layer = shake(fresh_layer(tower(mixer=mixer)).double()).eval()
        x = hidden().detach()
        changed = x.clone()
        changed[:, 5] = torch.randn(3, 24, dtype=torch.float64)
        moved = (layer(x) - layer(changed)).abs().amax((0, 2)) > 1e-9
        assert moved[5:].all()
        assert moved[:5].any() == looks_ahead


def test_attention_layer_equals_the_encoder_layer_of_torch():
    config = tower(mixer="attention", feed_forward="relu", intermediate_size=40)
    layer = shake(fresh_layer(config).double()).eval()
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64
    ).eval()
    mixer, feed_forward = layer.mixer, layer.feed_forward
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([mixer.query.weight, mixer.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([mixer.query.bias, mixer.key_value.bias]),
            "self_attn.out_proj.weight": mixer.out_proj.weight,
            "self_attn.out_proj.bias": mixer.out_proj.bias,
            "linear1.weight": feed_forward.up.weight,
            "linear1.bias": feed_forward.up.bias,
            "linear2.weight": feed_forward.down.weight,
            "linear2.bias": feed_forward.down.bias,
            "norm1.weight": layer.mixer_norm.weight,
            "norm1.bias": layer.mixer_norm.bias,
            "norm2.weight": layer.feed_forward_norm.weight,
            "norm2.bias": layer.feed_forward_norm.bias,
        }
    )
    x = hidden().detach()
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-10, atol=1e-11)
