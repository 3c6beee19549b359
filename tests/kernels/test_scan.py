"""The compiled scan alone equals the definition in float64, gradients too."""

import pytest
import torch
from torch.library import opcheck

from ftmamba.kernels.scan import cpu_scan, scan_op
from modeling_ftmamba.mixers import selective_scan_reference

from .conftest import gradients, relative_error

SHAPES = [(1, 1, 1, 1), (3, 21, 32, 16), (2, 33, 5, 3), (4, 64, 16, 8), (1, 200, 17, 32)]


def inputs(B, L, E, N, dt=None):
    generator = torch.Generator().manual_seed(L)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    dt = 0.1 * draw(B, L, E).exp() if dt is None else torch.full((B, L, E), dt)
    return [draw(B, L, E), dt, -draw(E, N).exp(), draw(B, L, N), draw(B, L, N)]


def defined(tensors):
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    return selective_scan_reference(*exact)[0], exact


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_definition(variant, shape):
    tensors = [tensor.requires_grad_() for tensor in inputs(*shape)]
    (expected, slow), got = defined(tensors), cpu_scan(*tensors)
    assert relative_error(got, expected) < 1e-6
    pairs = zip(gradients(got, tensors), gradients(expected, slow), strict=True)
    errors = [relative_error(a, b) for a, b in pairs if b.abs().max() > 0]
    assert len(errors) >= 4
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize("dt", [1e-7, 30.0, -0.01, float("nan")])
def test_any_step_gives_what_the_definition_gives(variant, dt):
    tensors = inputs(2, 20, 16, 4, dt)
    got = cpu_scan(*tensors)
    if dt != dt:
        assert got.isnan().all()
    else:
        assert relative_error(got, defined(tensors)[0].detach()) < 1e-6


def test_the_operator_passes_the_checks_of_torch():
    opcheck(scan_op, (*(tensor.requires_grad_() for tensor in inputs(2, 40, 5, 3)), True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_scanned_in_float32(dtype):
    tensors = [tensor.to(dtype) for tensor in inputs(2, 64, 8, 4)]
    got = cpu_scan(*tensors)
    assert got.dtype is dtype
    assert relative_error(got, defined(tensors)[0].detach()) < torch.finfo(dtype).eps


def test_empty_batches_and_rows_give_empty_answers():
    for B, L in ((0, 5), (3, 0)):
        tensors = [tensor.requires_grad_() for tensor in inputs(B, L, 4, 2)]
        got = cpu_scan(*tensors)
        assert got.shape == (B, L, 4)
        assert all((gradient == 0).all() for gradient in gradients(got, tensors))


@pytest.mark.parametrize(
    ("index", "spoil", "error", "match"),
    [
        (0, lambda u: u[0], ValueError, r"takes u \(batch, tokens, channels\)"),
        (1, lambda dt: dt[:, :-1], ValueError, r"dt must have the shape \(2, 5, 4\)"),
        (3, lambda B: B[..., :1], ValueError, r"B must have the shape \(2, 5, 2\)"),
        (4, lambda C: C[:, 0], ValueError, "C must have the shape"),
        (0, lambda u: u.to(torch.int32), TypeError, "got int32"),
        (2, lambda A: A.to("meta"), RuntimeError, "on the CPU"),
    ],
)
def test_wrong_inputs_are_refused(index, spoil, error, match):
    tensors = inputs(2, 5, 4, 2)
    tensors[index] = spoil(tensors[index])
    with pytest.raises(error, match=match):
        cpu_scan(*tensors)
