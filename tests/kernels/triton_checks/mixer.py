"""What the Triton mixer computes, against the definition in float64; see `scan.py`."""

import pytest
import torch
from torch.nn import functional as F

from ftmamba.kernels import triton_launch as launch
from ftmamba.kernels import triton_layer as mixer_module
from ftmamba.kernels.library import MambaParameters
from ftmamba.kernels.triton_layer import triton_layer, triton_mixer, triton_scan

from .definitions import (
    DEVICE,
    assert_equal_to,
    doubles,
    hidden,
    mixer_definition,
    mixer_parameters,
    relative_error,
    scan_inputs,
)


def check_mixer(B, L, *, last=False, reverse=False, dtype=torch.float32, **sizes):
    parameters = mixer_parameters(dtype, **sizes)
    tokens = hidden(B, L, parameters.out_proj.shape[0], dtype=dtype)
    tensors = [tokens, *parameters]
    exact = doubles(tensors)
    expected = mixer_definition(exact[0], MambaParameters(*exact[1:]), last=last, reverse=reverse)
    got = triton_mixer(tokens, parameters, last=last, reverse=reverse)
    assert_equal_to(expected, exact, got, tensors)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_mixer_equals_its_definition(length, reverse, last, poison):
    check_mixer(2, length, last=last, reverse=reverse)
    assert sum(poison) > 0


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_mixer_equals_its_definition_in_chunks(reverse, last, chunked):
    check_mixer(1, 15, last=last, reverse=reverse)


def test_the_mixer_in_tiles_of_channels():
    check_mixer(1, 3, inner=140, states=2)


@pytest.mark.parametrize("width", [1, 2, 9])
def test_convolutions_narrow_and_wide(width):
    check_mixer(1, 4, width=width)


def test_the_convolution_of_a_record_of_several_chunks(monkeypatch):
    monkeypatch.setattr("ftmamba.kernels.triton_conv.CHUNK", 3)
    check_mixer(1, 13)
    check_mixer(1, 13, reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mixer_of_half_weights(dtype):
    check_mixer(2, 5, dtype=dtype)


def test_autocast_runs_the_linears_in_half_and_keeps_the_weights_types():
    parameters, tokens = mixer_parameters(), hidden(2, 5, 4)
    exact = doubles([tokens, *parameters])
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = triton_mixer(tokens, parameters, last=False, reverse=False)
    expected = mixer_definition(exact[0], MambaParameters(*exact[1:]), last=False, reverse=False)
    assert got.dtype is torch.bfloat16
    assert 1e-4 < relative_error(got, expected) < 2e-2
    gradients = torch.autograd.grad(got.float().sum(), [tokens, *parameters])
    wanted = torch.autograd.grad(expected.sum(), exact)
    assert {x.dtype for x in gradients} == {torch.float32}
    assert all(relative_error(a, b) < 5e-2 for a, b in zip(gradients, wanted, strict=True))


def test_a_mixer_without_bias_of_its_convolution():
    parameters, tokens = mixer_parameters(), hidden(2, 3, 4)
    bare, zero = parameters._replace(conv_bias=None), torch.zeros_like(parameters.conv_bias)
    torch.testing.assert_close(
        triton_mixer(tokens, bare, last=False, reverse=False),
        triton_mixer(tokens, parameters._replace(conv_bias=zero), last=False, reverse=False),
        rtol=0,
        atol=0,
    )


def test_a_mixer_of_no_rows_gives_none():
    parameters, tokens = mixer_parameters(), hidden(0, 3, 4)
    mixed = triton_mixer(tokens, parameters, last=False, reverse=False)
    assert mixed.shape == (0, 3, 4)
    gradients = torch.autograd.grad(mixed.sum(), [tokens, *parameters])
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("last", [False, True])
def test_a_layer_is_norm_mixer_and_residual(last):
    parameters, tokens = mixer_parameters(), hidden(2, 3, 4)
    weight, bias = torch.rand(4, device=DEVICE), torch.rand(4, device=DEVICE)
    normed = F.layer_norm(tokens, (4,), weight, bias, 1e-3)
    mixed = triton_mixer(normed, parameters, last=last, reverse=False)
    kept = tokens[:, -1] if last else tokens
    layer = triton_layer(
        tokens, parameters, (weight, bias, 1e-3), residual=True, last=last, reverse=False
    )
    torch.testing.assert_close(layer, kept + mixed)
    bare = triton_layer(tokens, parameters, None, residual=False, last=last, reverse=True)
    torch.testing.assert_close(bare, triton_mixer(tokens, parameters, last=last, reverse=True))


@pytest.mark.parametrize("last", [False, True])
def test_the_mixers_operator_passes_the_checks_of_torch(last, monkeypatch):
    monkeypatch.setattr(launch, "CHUNK", 2)
    taken, run = [], mixer_module._forward
    tokens, parameters = hidden(2, 3, 4), mixer_parameters(states=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixer_module, "_forward", lambda *given: taken.append(given) or run(*given))
        triton_mixer(tokens, parameters, last=last, reverse=False)
    ((tensors, reverse, keep_states),) = taken
    assert keep_states
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.library.opcheck(run, (leaves, reverse, keep_states))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_graphs_hold_the_operators_whole():
    def both(tokens, parameters, *inputs):
        mixed = triton_mixer(tokens, parameters, last=False, reverse=True)
        return mixed.sum() + triton_scan(*inputs).sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    parameters = mixer_parameters()
    for length in (2, 3):
        tensors = [hidden(2, length, 4), *scan_inputs(2, length, 3, 2)]
        wanted = [*tensors, *parameters]
        results = [run(tensors[0], parameters, *tensors[1:]) for run in (both, compiled)]
        torch.testing.assert_close(results[1], results[0])
        gradients = [torch.autograd.grad(result, wanted) for result in results]
        for got, expected in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(got, expected)


def test_tokens_that_do_not_fit_are_refused():
    parameters = MambaParameters(*(x.detach().double() for x in mixer_parameters()))
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        triton_mixer(hidden(1, 2, 4).double(), parameters, last=False, reverse=False)
    with pytest.raises(ValueError, match=r"one token at least .* got \(2, 0, 4\)"):
        triton_mixer(hidden(2, 0, 4), mixer_parameters(), last=True, reverse=False)
