"""The compiled dropout, GELU and vectors of length 1: rates, independence, float64, gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from ftmamba.kernels.elementwise import (
    dropout,
    dropout_op,
    gelu_dropout,
    gelu_dropout_op,
    normalize,
    normalize_op,
)
from ftmamba.kernels.library import KernelLibrary

from .conftest import LIBRARY, VARIANTS

MANY = 2**20
# More than one block of numbers, and no whole number of vectors.
X = torch.cat([torch.linspace(-12, 12, 2**17 + 5), torch.tensor([0.0, -0.0, 80.0, -80.0])])


def dropped(x, rate, seed, added=None):
    return dropout_op(x, added, False, rate, seed)


def gelu_dropped(x, rate, seed):
    return gelu_dropout_op(x, None, rate, seed)


def deviation(products):
    """Return how many standard errors the mean of products, independent at rate .3, is from 0."""
    return abs(float(products.mean() * math.sqrt(len(products)) / 0.21))


def centred(seed):
    return (dropped(torch.ones(MANY), 0.3, seed) != 0).double() - 0.7


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.3, 0.5, 0.97])
def test_numbers_are_dropped_at_the_rate_and_the_others_keep_the_mean(variant, rate):
    x = torch.randn(MANY + 3, generator=torch.Generator().manual_seed(0))
    out = dropped(x, rate, 11)
    stayed = out != 0
    error = math.sqrt(rate * (1 - rate) / MANY)
    assert abs(float((~stayed).double().mean()) - rate) <= 4 * error
    torch.testing.assert_close(out[stayed], x[stayed] / (1 - rate))


def test_neighbours_near_and_far_are_independent():
    for seed in range(5):
        kept = centred(seed)
        for lag in (1, 2, 15, 16, 17, 64, 256, 4096, 65536):
            assert deviation(kept[lag:] * kept[:-lag]) < 4.5, (seed, lag)


def test_seeds_that_differ_in_any_bit_drop_others():
    first = centred(0)
    for bit in range(62):
        assert deviation(first * centred(2**bit)) < 4.5, bit


def test_every_instruction_set_and_number_of_threads_drops_the_same(threads, use):
    x, results = torch.randn(2**19 + 5), []
    for name in VARIANTS:
        use(KernelLibrary(LIBRARY, name))
        for n_threads in (1, 3):
            threads(n_threads)
            results.append(dropped(x, 0.2, 3))
    assert all(torch.equal(one, results[0]) for one in results[1:])


def test_the_gradient_is_dropped_where_the_number_was():
    x = torch.randn(1000, requires_grad=True)
    out = dropout(x, 0.4)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    torch.testing.assert_close(x.grad[x.grad != 0], torch.full_like(x.grad, 1 / 0.6)[x.grad != 0])


@pytest.mark.parametrize("function", [dropout, gelu_dropout])
def test_torchs_generator_decides_what_is_dropped(function):
    torch.manual_seed(5)
    first, second = function(torch.ones(1000), 0.5), function(torch.ones(1000), 0.5)
    torch.manual_seed(5)
    assert torch.equal(function(torch.ones(1000), 0.5), first)
    assert not torch.equal(first, second)


def test_they_are_operators_as_torch_wants_them():
    x = torch.randn(7, 5, requires_grad=True)
    narrow = x.detach().bfloat16().requires_grad_()
    added = torch.randn(7, 5, requires_grad=True)
    check = torch.library.opcheck
    check(dropout_op, (x, None, False, 0.3, 1))
    check(dropout_op, (narrow, added, False, 0.3, 1))
    check(gelu_dropout_op, (x, None, 0.3, 1))
    check(gelu_dropout_op, (narrow, None, 0.3, 1))
    check(normalize_op, (x, None, 1e-12))


@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 0, 4), (3, 17)])
def test_any_shape_will_do_and_views_too(shape):
    flat = torch.arange(12.0).reshape(3, 4) + 1
    for function in (lambda x: dropped(x, 0.5, 2), lambda x: gelu_dropped(x, 0.5, 2), normalize):
        assert function(torch.ones(shape)).shape == shape
        assert torch.equal(function(flat.t()), function(flat.t().contiguous()))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: dropped(x.double(), 0.5, 1), TypeError),
        (lambda x: dropped(x.bfloat16(), 0.5, 1), TypeError),
        (lambda x: dropped(x, 1.0, 1), ValueError),
        (lambda x: dropped(x, -0.1, 1), ValueError),
        (lambda x: dropped(x, math.nan, 1), ValueError),
        (lambda x: dropped(x, 0.5, 1, x.bfloat16()), TypeError),
        (lambda x: dropped(x.double(), 0.5, 1, x), TypeError),
        (lambda x: dropped(x[:1], 0.5, 1, x), ValueError),
        (lambda x: gelu_dropped(x.double(), 0.5, 1), TypeError),
        (lambda x: gelu_dropped(x, 1.0, 1), ValueError),
        (lambda x: normalize(x.double()), TypeError),
    ],
)
def test_other_types_rates_and_shapes_are_refused(call, error):
    with pytest.raises(error):
        call(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_sum_drops_what_dropout_drops_both_ways(variant, threads, dtype, n_threads):
    threads(n_threads)
    generator = torch.Generator().manual_seed(0)
    hidden, x = (torch.randn(2**19 + 77, generator=generator) for _ in range(2))
    inputs = [hidden.requires_grad_(), x.to(dtype).requires_grad_()]
    out = dropped(inputs[1], 0.4, 7, hidden)
    expected = hidden + dropped(inputs[1].float(), 0.4, 7)
    assert torch.equal(out, expected)
    weights = torch.linspace(-1, 2, len(x))
    found = torch.autograd.grad(out, inputs, weights)
    assert found[1].dtype == dtype
    assert all(map(torch.equal, found, torch.autograd.grad(expected, inputs, weights)))


def test_gelu_and_its_gradient_are_those_of_float64(variant):
    x, exact = X.clone().requires_grad_(), X.double().requires_grad_()
    out, expected = gelu_dropped(x, 0.0, 1), F.gelu(exact)
    torch.testing.assert_close(out.double(), expected, rtol=3e-7, atol=3e-7)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=5e-7)


def test_gelu_in_bfloat16_is_the_result_of_float32_rounded(variant):
    x, wide = X.bfloat16().requires_grad_(), X.bfloat16().float().requires_grad_()
    out, expected = gelu_dropped(x, 0.3, 4), gelu_dropped(wide, 0.3, 4)
    assert torch.equal(out, expected.bfloat16())
    weights = torch.linspace(-2, 1, len(X)).bfloat16()
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights.float()).sum(), wide)
    assert torch.equal(gradient, wanted.bfloat16())


@pytest.mark.parametrize("n_threads", [1, 3])
def test_gelu_drops_what_dropout_drops_both_ways(variant, threads, n_threads):
    threads(n_threads)
    x, plain = X.clone().requires_grad_(), X.clone().requires_grad_()
    out = gelu_dropped(x, 0.4, 7)
    torch.testing.assert_close(out, dropped(gelu_dropped(X, 0.0, 0), 0.4, 7), rtol=1e-6, atol=0)
    torch.autograd.backward([out, dropped(F.gelu(plain), 0.4, 7)], [torch.ones_like(X)] * 2)
    torch.testing.assert_close(x.grad, plain.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 16, 64, 77])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_normalize_and_its_gradient_are_those_of_float64(variant, threads, size, n_threads):
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


def test_nan_stays_nan(variant):
    x = torch.ones(2, 40)
    x[1, 7] = math.nan
    assert normalize(x).isnan().any(1).tolist() == [False, True]
    assert gelu_dropped(x, 0.0, 1).isnan().sum() == 1
