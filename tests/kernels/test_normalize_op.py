"""The compiled vectors of length 1: values and gradients against float64."""

import math

import pytest
import torch
from ftmamba.kernels.normalize_op import normalize, normalize_op
from torch.nn import functional as F

from modeling_ftmamba import normalize as module


@pytest.mark.parametrize("size", [1, 3, 16, 64, 77])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_values_and_gradients_are_those_of_float64(variant, threads, size, n_threads):
    threads(n_threads)
    x = torch.randn(41, 100, size) * torch.logspace(-6, 6, 100)[:, None]
    weights = torch.randn(x.shape)
    exact = x.double().requires_grad_()
    x.requires_grad_()
    out, expected = normalize(x), F.normalize(exact, dim=-1)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-7)
    (gradient,) = torch.autograd.grad(out, x, weights)
    (wanted,) = torch.autograd.grad(expected, exact, weights.double())
    scale = weights.norm(dim=-1, keepdim=True) / x.detach().norm(dim=-1, keepdim=True)
    assert ((gradient.double() - wanted).abs() / scale).max() < 1e-6


def test_rows_shorter_than_eps_are_divided_by_it(variant):
    x = torch.tensor([[0.0] * 20, [3e-3] * 20]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, expected = normalize(x, 0.5), F.normalize(exact, dim=-1, eps=0.5)
    torch.testing.assert_close(out.double(), expected)
    weights = torch.randn(2, 20)
    (gradient,) = torch.autograd.grad(out, x, weights)
    (wanted,) = torch.autograd.grad(expected, exact, weights.double())
    torch.testing.assert_close(gradient.double(), wanted)
    assert (normalize(torch.zeros(2, 5)) == 0).all()


def test_a_number_that_is_none_stays_none(variant):
    x = torch.ones(2, 40)
    x[1, 7] = math.nan
    assert normalize(x).isnan().any(1).tolist() == [False, True]


def test_it_is_an_operator_as_torch_wants_them():
    torch.library.opcheck(normalize_op, (torch.randn(7, 5, requires_grad=True), 1e-12))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 0, 4), (3, 17)])
def test_any_shape_will_do_and_views_too(shape):
    assert normalize(torch.ones(shape)).shape == shape
    flat = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(normalize(flat.t()), normalize(flat.t().contiguous()))


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="takes float32, got torch"):
        normalize(torch.ones(3).double())


def test_models_use_it_in_training_alone(monkeypatch):
    used = []

    def spy(x):
        used.append(x.shape)
        return x

    monkeypatch.setattr(module, "cpu_kernel", {"normalize": spy}.get)
    x = torch.randn(2, 8)
    assert module.normalize(x.requires_grad_()) is x
    assert torch.equal(module.normalize(x.detach()), F.normalize(x.detach(), dim=-1))
    module.normalize(x.double())
    assert len(used) == 1
