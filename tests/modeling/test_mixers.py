"""Mixers against other people's, and layers as their options make them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as TransformersMambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from modeling_ftmamba import FTMambaConfig, FTMambaTowerConfig, FTMambaTowerModel
from modeling_ftmamba.mixers import MambaMixer, SSDMixer, decay_rates, time_steps
from modeling_ftmamba.network import FTMambaLayer

from .conftest import COLUMNS, shake

SIZES = {
    "mamba": {"state_size": 6, "conv_kernel": 3},
    "ssd": {"state_size": 6, "conv_kernel": 3, "ssd_head_size": 8},
    "attention": {"num_attention_heads": 4},
}
FED = {"mixer_feed_forward": True, "feed_forward": "gelu", "intermediate_size": 40}
# One chunk of the SSD scan, and two of which the second is not full.
LENGTHS = [1, 2, 9, 61]


def tower(mixer="mamba", **fields):
    return FTMambaTowerConfig(columns=[], mixer=mixer, hidden_size=24, **SIZES[mixer], **fields)


def fresh_layer(mixer="mamba", **fields):
    torch.manual_seed(0)
    layer = FTMambaLayer(tower(mixer, **fields), 1)
    for module in layer.modules():
        if isinstance(module, MambaMixer | SSDMixer):
            module.reset_parameters()
    return shake(layer.double()).eval()


def hidden(length=9):
    x = torch.randn(3, length, 24, generator=torch.Generator().manual_seed(1)).double()
    return x.requires_grad_()


def gradients(output, wanted):
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), wanted)


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def assert_same_mixer(ours, theirs, length):
    shake(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = hidden(length).detach().float()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    names = [name for name, _ in ours.named_parameters()]
    their_parameters = dict(theirs.named_parameters())
    expected = gradients(theirs(x), [their_parameters[name] for name in names])
    for got, want in zip(gradients(ours(x), list(ours.parameters())), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_mamba_equals_the_mixer_of_transformers_with_its_weights(length):
    config = MambaConfig(
        hidden_size=24, state_size=6, conv_kernel=3, expand=2, time_step_rank=2, use_mambapy=False
    )
    assert_same_mixer(MambaMixer(tower()), TransformersMambaMixer(config, layer_idx=0), length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("head_size", [8, 48])
def test_ssd_equals_the_mixer_of_transformers_with_its_weights(length, head_size):
    config = Mamba2Config(
        hidden_size=24, state_size=6, conv_kernel=3, expand=2, head_dim=head_size,
        num_heads=48 // head_size, n_groups=1, chunk_size=16,
    )  # fmt: skip
    own = FTMambaTowerConfig(
        mixer="ssd", hidden_size=24, state_size=6, conv_kernel=3, ssd_head_size=head_size
    )
    assert_same_mixer(SSDMixer(own), Mamba2Mixer(config, layer_idx=0), length)


def test_attention_layer_equals_the_encoder_layer_of_torch():
    layer = fresh_layer("attention", feed_forward="relu", intermediate_size=40)
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


def test_steps_and_decays_start_in_their_ranges():
    torch.manual_seed(0)
    steps = {"time_step_min": 0.01, "time_step_max": 0.2}
    mamba, ssd = MambaMixer(tower(**steps)), SSDMixer(tower("ssd", expand=64, **steps))
    for mixer, bias in ((mamba, mamba.dt_proj.bias), (ssd, ssd.dt_bias)):
        mixer.reset_parameters()
        assert 0.0099 < F.softplus(bias).min() < 0.02
        assert 0.1 < F.softplus(bias).max() < 0.2001
        assert mixer.D.eq(1).all()
    torch.testing.assert_close(decay_rates(mamba.A_log)[0], -torch.arange(1.0, 7.0))
    assert -16 <= decay_rates(ssd.A_log).min() < -12
    assert -4 < decay_rates(ssd.A_log).max() <= -1
    assert ssd.norm.weight.eq(1).all()


def test_a_gap_lengthens_the_steps_and_tokens_beyond_a_row_have_none():
    raw, gaps, weight = torch.randn(2, 9, 4), torch.rand(2, 9), torch.randn(4)
    plain, longer = time_steps(raw, weight, None, None), time_steps(raw, weight, gaps, None)
    assert torch.equal(plain, F.softplus(raw))
    torch.testing.assert_close(longer, plain * (gaps[..., None] * weight).exp())
    ragged = time_steps(raw, weight, gaps, torch.tensor([9, 4]))
    assert torch.equal(ragged[0], longer[0])
    assert torch.equal(ragged[1, :4], longer[1, :4])
    assert (ragged[1, 4:] == 0).all()


@pytest.mark.parametrize("mixer", ["mamba", "ssd", "attention"])
@pytest.mark.parametrize("norm_position", ["pre", "post", "sum"])
def test_the_last_token_alone_equals_the_last_of_all(mixer, norm_position):
    layer, x = fresh_layer(mixer, norm_position=norm_position), hidden(61)
    assert_near(layer.forward_last(x), layer(x)[:, -1])


@pytest.mark.parametrize(
    ("mixer", "fields", "looks_ahead"),
    [
        ("mamba", {}, False),
        ("ssd", {}, False),
        ("attention", {"causal_attention": True}, False),
        ("mamba", {"bidirectional": True}, True),
        ("ssd", {"bidirectional": True}, True),
        ("attention", {}, True),
    ],
)
def test_no_token_sees_a_later_one_unless_it_may(mixer, fields, looks_ahead):
    layer, x = fresh_layer(mixer, **fields), hidden().detach()
    changed = x.clone()
    changed[:, 5] = changed[:, 5].flip(-1)
    moved = (layer(x) - layer(changed)).abs().amax((0, 2))
    assert (moved[5:] > 1e-9).all()
    assert (moved[:5] > 1e-9).any() == looks_ahead


@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_both_directions_are_the_sum_of_two_mixers(mixer):
    layer, x = fresh_layer(mixer, bidirectional=True), hidden().detach()
    normed = layer.mixer_norm(x)
    back = layer.reverse_mixer(normed.flip(1)).flip(1)
    torch.testing.assert_close(layer(x), x + layer.mixer(normed) + back)


@pytest.mark.parametrize("residual", [True, False])
def test_sum_is_the_layer_of_mamba4rec(residual):
    """One layer as its code reads: MambaLayer, then FeedForward."""
    layer, x = fresh_layer(norm_position="sum", mixer_residual=residual, **FED), hidden()
    mixed = layer.mixer(x)
    read = layer.mixer_norm(mixed + x if residual else mixed)
    up, down, norm = layer.feed_forward.up, layer.feed_forward.down, layer.feed_forward_norm
    assert_near(layer(x), norm(down(F.gelu(up(read))) + read))


def test_without_a_residual_the_mixer_takes_the_place_of_its_input():
    x = hidden()
    before = fresh_layer(mixer_residual=False)
    assert_near(before(x), before.mixer(before.mixer_norm(x)))
    after = fresh_layer(mixer_residual=False, norm_position="post")
    assert_near(after(x), after.mixer_norm(after.mixer(x)))


@pytest.mark.parametrize("norm_position", ["pre", "post", "sum"])
@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_a_feed_forward_follows_the_mixer(mixer, norm_position):
    layer = fresh_layer(mixer, norm_position=norm_position, **FED)
    bare = fresh_layer(mixer, norm_position=norm_position)
    bare.load_state_dict(layer.state_dict(), strict=False)
    norm, feed = layer.feed_forward_norm, layer.feed_forward
    x = bare(hidden())
    fed = {
        "pre": lambda: x + feed(norm(x)),
        "post": lambda: x + norm(feed(x)),
        "sum": lambda: norm(x + feed(x)),
    }
    assert_near(layer(hidden()), fed[norm_position]())
    assert_near(layer.forward_last(hidden()), layer(hidden())[:, -1])


@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_a_mixer_compiles_into_one_graph(mixer):
    module, x = fresh_layer(mixer).mixer, hidden(61)
    got, expected = torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x)
    torch.testing.assert_close(got, expected)
    wanted = [x, *module.parameters()]
    for a, b in zip(gradients(got, wanted), gradients(expected, wanted), strict=True):
        torch.testing.assert_close(a, b)


def test_the_head_norm_and_bias_can_be_left_out():
    config = FTMambaConfig.from_columns(
        [], [COLUMNS[1]], num_hidden_layers=0, pooling="mean", hidden_size=8, projection_size=8,
        final_norm=False, with_head=False, category_bias=False,
    )  # fmt: skip
    model = FTMambaTowerModel(config.tower("item"))
    ids = torch.tensor([[4], [8]])
    table = model.tokenizer.kinds["category_ids"].table.weight
    assert torch.equal(model(category_ids=ids).embeds, table[ids[:, 0]])
    names = [name for name, _ in model.named_parameters()]
    assert names == ["tokenizer.kinds.category_ids.table.weight"]


def test_weights_start_normal_and_biases_at_zero_but_for_the_steps():
    torch.manual_seed(0)
    config = FTMambaTowerConfig(
        columns=[COLUMNS[1]], initializer_range=0.02, hidden_size=64, **FED, time_step_max=0.1
    )
    model = FTMambaTowerModel(config)
    layer, table = model.layers[0], model.tokenizer.kinds["category_ids"].table.weight
    for weight in (layer.mixer.in_proj.weight, layer.feed_forward.up.weight, table[3:]):
        assert 0.015 < weight.std() < 0.025
        assert weight.abs().max() > 0.04
    assert (table[:3] == 0).all()
    assert 0.01 < layer.mixer.dt_proj.weight.std() < 0.03
    assert (layer.feed_forward.up.bias == 0).all()
    assert (model.tokenizer.kinds["category_ids"].bias == 0).all()
    assert F.softplus(layer.mixer.dt_proj.bias).max() < 0.1001
    assert 0.015 < model.tokenizer.cls.std() < 0.025
