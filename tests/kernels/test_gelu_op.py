"""The compiled GELU with its dropout: against float64, and the same numbers dropped both ways."""

import math

import pytest
import torch
from ftmamba.kernels.dropout_op import seeded_dropout
from ftmamba.kernels.gelu_op import gelu_dropout, seeded_gelu_dropout
from modeling_ftmamba.dropout import Dropout
from torch.nn import functional as F

# More than one block of numbers, and no whole number of vectors.
X = torch.cat([torch.linspace(-12, 12, 2**17 + 5), torch.tensor([0.0, -0.0, 80.0, -80.0])])


def test_values_and_gradients_are_those_of_float64(variant):
    x = X.clone().requires_grad_()
    exact = X.double().requires_grad_()
    out, expected = seeded_gelu_dropout(x, 0.0, 1), F.gelu(exact)
    assert (out - expected).abs().max() < 6e-7
    torch.testing.assert_close(out.double(), expected, rtol=3e-7, atol=3e-7)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=5e-7)


def test_bfloat16_is_the_result_of_float32_rounded(variant):
    x = X.bfloat16().requires_grad_()
    wide = X.bfloat16().float().requires_grad_()
    out, expected = seeded_gelu_dropout(x, 0.3, 4), seeded_gelu_dropout(wide, 0.3, 4)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())
    weights = torch.linspace(-2, 1, len(X)).bfloat16()
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights.float()).sum(), wide)
    assert torch.equal(gradient, wanted.bfloat16())


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_is_dropped_is_what_dropout_drops_both_ways(variant, threads, n_threads):
    threads(n_threads)
    x = X.clone().requires_grad_()
    out = seeded_gelu_dropout(x, 0.4, 7)
    torch.testing.assert_close(
        out, seeded_dropout(seeded_gelu_dropout(X, 0.0, 0), 0.4, 7), rtol=1e-6, atol=0
    )
    plain = X.clone().requires_grad_()
    torch.autograd.backward([out, seeded_dropout(F.gelu(plain), 0.4, 7)], [torch.ones_like(X)] * 2)
    torch.testing.assert_close(x.grad, plain.grad, rtol=0, atol=1e-6)


def test_torchs_generator_decides_what_is_dropped():
    torch.manual_seed(5)
    first, second = gelu_dropout(X, 0.5), gelu_dropout(X, 0.5)
    torch.manual_seed(5)
    assert torch.equal(gelu_dropout(X, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_an_operator_as_torch_wants_them(dtype):
    x = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    torch.library.opcheck(seeded_gelu_dropout, (x, 0.3, 1))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (3, 17)])
def test_any_shape_will_do_and_views_too(shape):
    assert seeded_gelu_dropout(torch.ones(shape), 0.5, 2).shape == shape
    flat = torch.arange(12.0).reshape(3, 4)
    turned = seeded_gelu_dropout(flat.t(), 0.5, 2)
    assert torch.equal(turned, seeded_gelu_dropout(flat.t().contiguous(), 0.5, 2))


@pytest.mark.parametrize(
    ("x", "rate", "error"),
    [
        (torch.ones(3, dtype=torch.float64), 0.5, TypeError),
        (torch.ones(3), 1.0, ValueError),
        (torch.ones(3), math.nan, ValueError),
    ],
)
def test_what_it_does_not_take_is_told(x, rate, error):
    with pytest.raises(error):
        seeded_gelu_dropout(x, rate, 1)


def test_a_number_that_is_none_stays_none(variant):
    assert seeded_gelu_dropout(torch.full((40,), math.nan), 0.0, 1).isnan().all()


def test_the_module_uses_it_in_training_alone(monkeypatch):
    used = []

    def spy(x, rate):
        used.append(rate)
        return x

    monkeypatch.setattr("modeling_ftmamba.dropout.cpu_kernel", {"gelu_dropout": spy}.get)
    module, x = Dropout(0.25), torch.randn(8)
    module.after_gelu(x)
    Dropout(0.0).after_gelu(x)
    assert used == [0.25, 0.0]
    module.eval()
    assert torch.equal(module.after_gelu(x), F.gelu(x))
    assert torch.equal(module.after_gelu(x.double()), F.gelu(x.double()))
    assert len(used) == 2
