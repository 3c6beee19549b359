"""The SSD mixer against that of Transformers, and its fast paths against its slow ones."""

import pytest
import torch
from modeling_ftmamba.scans import scan_named
from torch import nn
from torch.nn import functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from modeling_ftmamba import FTMambaTowerConfig, ssd_row_blocks
from modeling_ftmamba.mixers import SSDMixer
from modeling_ftmamba.network import FTMambaLayer

from .conftest import shake

# One chunk, and two of which the second is not full.
LENGTHS = [1, 2, 9, 61]


def tower(**fields):
    sizes = {"hidden_size": 24, "state_size": 6, "conv_kernel": 3, "ssd_head_size": 8}
    return FTMambaTowerConfig(columns=[], mixer="ssd", **(sizes | fields))


def fresh_mixer(**fields):
    torch.manual_seed(0)
    mixer = SSDMixer(tower(**fields))
    mixer.reset_parameters()
    return shake(mixer)


def fresh_layer(**fields):
    layer = FTMambaLayer(tower(**fields), 1, scan_named("sequential"))
    for mixer in (layer.mixer, layer.reverse_mixer):
        if mixer is not None:
            mixer.reset_parameters()
    return shake(layer.double()).eval()


def hidden(length=9, n_rows=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(n_rows, length, 24, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def gradients(output, wanted):
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), wanted)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("head_size", [8, 48])
def test_it_equals_the_mixer_of_transformers_with_its_weights(length, head_size):
    config = Mamba2Config(
        hidden_size=24,
        state_size=6,
        conv_kernel=3,
        expand=2,
        head_dim=head_size,
        num_heads=48 // head_size,
        n_groups=1,
        chunk_size=16,
    )
    theirs = shake(Mamba2Mixer(config, layer_idx=0))
    ours = SSDMixer(tower(ssd_head_size=head_size))
    ours.load_state_dict(theirs.state_dict())
    x = hidden(length, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in ours.state_dict().items()]
    pairs = zip(names, gradients(ours(x), list(ours.parameters())), strict=True)
    their_parameters = dict(theirs.named_parameters())
    expected = gradients(theirs(x), [their_parameters[name] for name in names])
    for (name, got), want in zip(pairs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5, msg=name)


def test_initial_steps_and_decays_lie_in_their_ranges():
    torch.manual_seed(0)
    mixer = SSDMixer(tower(time_step_min=0.01, time_step_max=0.2, ssd_head_size=1))
    mixer.reset_parameters()
    steps = F.softplus(mixer.dt_bias)
    assert 0.0099 < steps.min() < 0.02
    assert 0.1 < steps.max() < 0.2001
    assert -16 <= mixer.decay_rates().min() < -12
    assert -4 < mixer.decay_rates().max() <= -1
    assert mixer.D.eq(1).all()
    assert mixer.norm.weight.eq(1).all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows_of_a_block", [1, 2, 100])
@pytest.mark.parametrize("forward", ["forward", "forward_last"])
def test_blocks_of_rows_equal_the_separate_steps(monkeypatch, length, rows_of_a_block, forward):
    mixer, x = fresh_mixer().double(), hidden(length)
    wanted = [x, *mixer.parameters()]
    numbers = rows_of_a_block * length * 48 // torch.get_num_threads()
    monkeypatch.setattr(ssd_row_blocks, "_BLOCK_NUMBERS", numbers)
    fast = getattr(mixer, forward)(x)
    node = fast.grad_fn if forward == "forward" else fast.grad_fn.next_functions[0][0]
    assert type(node).__name__ == "_MixerBackward"
    monkeypatch.setattr("modeling_ftmamba.mixer_ssd.can_mix_in_row_blocks", lambda *_: False)
    slow = getattr(mixer, forward)(x)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-13)
    for a, b in zip(gradients(fast, wanted), gradients(slow, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("forward", ["forward", "forward_last"])
def test_float32_is_exact_to_its_rounding(forward):
    mixer, x = fresh_mixer(), hidden(61, dtype=torch.float32)
    exact, x_exact = fresh_mixer().double(), hidden(61)
    exact.load_state_dict(mixer.state_dict())
    got, expected = (
        getattr(mixer, forward)(x),
        getattr(exact, forward)(x_exact.detach().float().double().requires_grad_()),
    )
    assert (got.double() - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_last_token_alone_equals_the_last_of_all_with_gradients(norm_position, length):
    layer, x = fresh_layer(norm_position=norm_position), hidden(length)
    outputs = layer(x)[:, -1], layer.forward_last(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-12)
    wanted = [x, *layer.parameters()]
    full, last = (gradients(output, wanted) for output in outputs)
    for a, b in zip(last, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_it_never_looks_ahead_unless_bidirectional():
    for bidirectional in (False, True):
        layer, x = fresh_layer(bidirectional=bidirectional), hidden().detach()
        changed = x.clone()
        changed[:, 5] = torch.randn(5, 24, dtype=torch.float64)
        moved = (layer(x) - layer(changed)).abs().amax((0, 2)) > 1e-9
        assert moved[5:].all()
        assert moved[:5].any() == bidirectional


def test_both_directions_are_the_sum_of_two_mixers():
    layer, x = fresh_layer(bidirectional=True), hidden().detach()
    normed = layer.mixer_norm(x)
    back = layer.reverse_mixer(normed.flip(1)).flip(1)
    torch.testing.assert_close(layer(x), x + layer.mixer(normed) + back)


def test_tokens_in_any_memory_order_are_mixed_alike():
    mixer, x = fresh_mixer().double(), hidden().detach()
    strided = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    torch.testing.assert_close(mixer(strided), mixer(x))
    (d_strided,) = gradients(mixer(strided), [strided])
    (d_x,) = gradients(mixer(x.requires_grad_()), [x])
    torch.testing.assert_close(d_strided, d_x)


def test_no_token_and_no_row_are_answered():
    mixer = fresh_mixer()
    assert mixer(torch.zeros(3, 0, 24)).shape == (3, 0, 24)
    assert mixer(torch.zeros(0, 9, 24)).shape == (0, 9, 24)
    assert mixer.forward_last(torch.zeros(0, 9, 24)).shape == (0, 24)


def test_an_adapter_and_a_hook_are_run():
    x = hidden(dtype=torch.float32)
    for part in ("in_proj", "out_proj", "norm"):
        mixer = fresh_mixer()
        plain = mixer(x)
        seen = []
        handle = getattr(mixer, part).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.testing.assert_close(mixer(x), plain, rtol=1e-4, atol=1e-5)
        assert seen
        handle.remove()
    mixer.out_proj = nn.Sequential(mixer.out_proj, nn.Tanh())
    torch.testing.assert_close(mixer(x), plain.tanh(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forward", ["forward", "forward_last"])
def test_autocast_is_close_with_finite_gradients(forward):
    mixer, x = fresh_mixer(), hidden(61, dtype=torch.float32)
    expected = getattr(mixer, forward)(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = getattr(mixer, forward)(x)
    assert got.dtype is torch.bfloat16
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    pairs = zip(
        *(gradients(y.float(), list(mixer.parameters())) for y in (got, expected)), strict=True
    )
    for a, b in pairs:
        assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("forward", ["forward", "forward_last"])
def test_it_compiles_into_one_graph(forward):
    mixer, x = fresh_mixer().double(), hidden(61)
    compiled = torch.compile(getattr(mixer, forward), fullgraph=True, backend="aot_eager")
    got, expected = compiled(x), getattr(mixer, forward)(x)
    torch.testing.assert_close(got, expected)
    wanted = [x, *mixer.parameters()]
    for a, b in zip(gradients(got, wanted), gradients(expected, wanted), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_initialises_its_mixers(build):
    """Untouched memory would leave decays, steps or norms out of their ranges."""
    mixers = [m for m in build(mixer="ssd").modules() if isinstance(m, SSDMixer)]
    assert len(mixers) == 4
    for mixer in mixers:
        assert -30 < mixer.decay_rates().min() <= mixer.decay_rates().max() < -0.5
        assert mixer.norm.weight.sub(1).abs().max() < 0.6
        assert mixer.D.sub(1).abs().max() < 0.6
