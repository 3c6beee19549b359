"""Every scan equals the definition run in float64, values and all gradients, state included."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_ftmamba import mixers
from modeling_ftmamba.mixers import (
    causal_conv_silu,
    selective_scan,
    selective_scan_reference,
    ssd,
)

HEADS = 2
# Rows, tokens, channels, state; one chunk of the SSD scan, whole chunks, and a last one in part.
SHAPES = [(1, 1, 2, 1), (3, 2, 6, 1), (2, 7, 6, 4), (1, 48, 4, 5), (5, 49, 8, 3), (2, 130, 4, 2)]
# Small steps, whose decays reach over chunks; those of one token; and such as leave nothing.
SCALES = [0.02, 1.0, 30.0]
# The exponents of decays reach 50, and the rounding of an exponent is an error of its exp.
TYPES = [(torch.float64, 5e-13), (torch.float32, 5e-6)]


def inputs(kind, B, L, E, N, dtype=torch.float64, scale=1.0):
    """Return u, dt, A, B, C and a state; dt and A of `ssd` are those of heads."""
    generator = torch.Generator().manual_seed(B + 10 * L)
    n_steps = HEADS if kind == "ssd" else E

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [
        draw(B, L, E),
        scale * draw(B, L, n_steps).exp(),
        -(draw(n_steps) if kind == "ssd" else draw(E, N)).exp(),
        draw(B, L, N),
        draw(B, L, N),
        draw(B, E, N),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def defined(kind, u, dt, A, B, C, state=None):
    """Run the definition, each head's steps and rate repeated for its channels."""
    if kind == "ssd":
        width = u.shape[-1] // HEADS
        dt, A = dt.repeat_interleave(width, -1), A.repeat_interleave(width)[:, None]
    return selective_scan_reference(u, dt, A.expand(-1, B.shape[-1]), B, C, state)


def run(kind, u, *others):
    if kind != "ssd":
        return selective_scan(u, *others)
    y, state = ssd(u.unflatten(-1, (HEADS, -1)), *others)
    return y.flatten(2), state


def gradients(outputs, tensors):
    total = sum(
        (one * torch.linspace(-1, 2, one.numel(), dtype=one.dtype).view_as(one)).sum()
        for one in outputs
    )
    return torch.autograd.grad(total, tensors)


def relative_error(got, expected):
    """Return the largest error over the largest value; decays below exp(-60) count as nothing."""
    return ((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()


def assert_equal(got, expected, tensors, exact, bound):
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < bound / 5
    pairs = zip(gradients(got, tensors), gradients(expected, exact), strict=True)
    errors = [relative_error(a, b) for a, b in pairs if b.abs().max() > 0]
    assert len(errors) >= 4
    assert max(errors) < bound, errors


def test_two_tokens_by_hand():
    u, dt = torch.tensor([[[2.0], [3.0]]]), torch.tensor([[[0.5], [0.25]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[4.0], [5.0]]]), torch.tensor([[[6.0], [7.0]]])
    first = 0.5 * 4 * 2
    second = torch.exp(torch.tensor(-0.25)) * first + 0.25 * 5 * 3
    expected = torch.tensor([[[6 * first], [7 * second]]])
    for scan in (selective_scan_reference, selective_scan):
        y, state = scan(u, dt, A, B, C)
        torch.testing.assert_close(y, expected)
        assert state.item() == pytest.approx(second.item())
    y, state = ssd(u[..., None], dt, A[0], B, C)
    torch.testing.assert_close(y[..., 0], expected)
    torch.testing.assert_close(state.flatten(), second[None])


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_values_and_gradients_equal_the_definition(kind, shape, dtype, bound, scale, with_state):
    n_inputs = 6 if with_state else 5
    exact = inputs(kind, *shape, scale=scale)[:n_inputs]
    tensors = inputs(kind, *shape, dtype, scale)[:n_inputs]
    assert_equal(run(kind, *tensors), defined(kind, *exact), tensors, exact, bound)


@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_parts_of_a_long_row_are_the_whole(monkeypatch, kind):
    tensors = inputs(kind, 2, 100, 4, 3)
    monkeypatch.setattr(mixers, "_NUMBERS_AT_A_TIME", 1)
    assert_equal(run(kind, *tensors), defined(kind, *tensors), tensors, tensors, 5e-13)
    first = run(kind, *(x[:, :37] if x.ndim == 3 and x.shape[1] == 100 else x for x in tensors))
    rest = [x[:, 37:] if x.ndim == 3 and x.shape[1] == 100 else x for x in tensors[:5]]
    then = run(kind, *rest, first[1])
    expected = defined(kind, *tensors)
    torch.testing.assert_close(torch.cat([first[0], then[0]], 1), expected[0])
    torch.testing.assert_close(then[1], expected[1])


@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_a_step_of_zero_leaves_the_state_alone(kind):
    tensors = inputs(kind, 2, 60, 4, 3)
    tensors[1] = tensors[1].detach().clone()
    tensors[1][:, 20:] = 0
    short = [x[:, :20] if x.ndim == 3 and x.shape[1] == 60 else x for x in tensors]
    torch.testing.assert_close(run(kind, *tensors)[1], run(kind, *short)[1])


@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_narrow_types_are_rounded_once_and_autocast_leaves_the_state_wide(kind):
    tensors = inputs(kind, 2, 64, 4, 3, torch.bfloat16)[:5]
    exact = [tensor.detach().double() for tensor in tensors]
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = run(kind, *tensors)
            found = gradients([y], tensors)
        assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        expected = defined(kind, *exact)[0]
        assert relative_error(y, expected) < 2**-8
        assert all(d.dtype is torch.bfloat16 for d in found)


@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_memory_of_the_backward_is_linear_in_length(kind):
    saved = {}
    for length in (96, 192):
        total = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, total=total: total.append(tensor.numel()), lambda tensor: tensor
        ):
            run(kind, *inputs(kind, 1, length, 4, 4, torch.float32)[:5])
        saved[length] = sum(total)
    assert 0 < saved[192] < 2.1 * saved[96]


@pytest.mark.parametrize("kind", ["mamba", "ssd"])
def test_no_token_and_no_row_are_answered(kind):
    u, dt, A, B, C, state = inputs(kind, 3, 7, 4, 5)
    empty = u[:, :0], dt[:, :0], A, B[:, :0], C[:, :0]
    y, after = run(kind, *empty, state)
    assert y.shape == (3, 0, 4)
    assert torch.equal(after, state)
    y, after = run(kind, u[:0], dt[:0], A, B[:0], C[:0])
    assert (y.shape, after.shape) == ((0, 7, 4), (0, 4, 5))


def test_a_gpu_without_the_package_takes_the_scan_that_transformers_finds(monkeypatch):
    """Its function has channels before tokens, and mamba_ssm's names."""
    calls = []

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
        return_last_state=False,
    ):  # fmt: skip
        calls.append((D, z, delta_bias, delta_softplus, return_last_state))
        y, state = selective_scan_reference(u.mT, delta.mT, A, B.mT, C.mT)
        return y.mT, state

    package = ModuleType("mamba_ssm")
    package.selective_scan_fn = selective_scan_fn
    package.ops = ModuleType("mamba_ssm.ops")
    package.ops.selective_scan_interface = package
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, package)
    tensors = inputs("mamba", 2, 9, 4, 3, torch.float32)[:5]
    mixers._scan_function.cache_clear()
    try:
        got = mixers._scan_by_kernel(*tensors)
    finally:
        mixers._scan_function.cache_clear()
    assert calls == [(None, None, None, False, True)]
    for a, b in zip(got, selective_scan_reference(*tensors), strict=True):
        torch.testing.assert_close(a, b)
    monkeypatch.undo()
    for a, b in zip(mixers._scan_by_kernel(*tensors), selective_scan(*tensors), strict=True):
        torch.testing.assert_close(a, b)
    mixers._scan_function.cache_clear()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_convolution_goes_on_where_it_stopped(width, length):
    conv1d = nn.Conv1d(6, 6, width, groups=6).double()
    x = torch.randn(3, length, 6, dtype=torch.float64)
    whole, newest = causal_conv_silu(x, conv1d)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    torch.testing.assert_close(whole, F.silu(conv1d(padded)).transpose(1, 2))
    assert torch.equal(newest, padded[..., length:])
    lengths = torch.tensor([0, 1, length])
    _, kept = causal_conv_silu(x, conv1d, None, lengths)
    for row, n_tokens in enumerate(lengths.tolist()):
        more = torch.randn(1, 2, 6, dtype=torch.float64)
        expected, _ = causal_conv_silu(torch.cat([x[row : row + 1, :n_tokens], more], 1), conv1d)
        got, _ = causal_conv_silu(more, conv1d, kept[row : row + 1])
        torch.testing.assert_close(got, expected[:, n_tokens:])
