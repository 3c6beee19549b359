"""The compiled dropout: its rate, its independence, its gradient, and every instruction set."""

import math

import pytest
import torch
from ftmamba.kernels.dropout_op import dropout, seeded_dropout, seeded_dropout_sum
from modeling_ftmamba.dropout import Dropout
from torch.nn import functional as F

from ftmamba.kernels.library import KernelLibrary

from .conftest import LIBRARY, VARIANTS

MANY = 2**20


def kept(seed, rate=0.3, count=MANY):
    return seeded_dropout(torch.ones(count), rate, seed) != 0


def deviation(products, variance):
    """Return how many standard errors the mean of independent products is from 0."""
    return float(products.mean() * math.sqrt(len(products)) / variance)


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.3, 0.5, 0.97])
def test_numbers_are_dropped_at_the_rate_and_the_others_keep_the_mean(variant, rate):
    x = torch.randn(MANY + 3, generator=torch.Generator().manual_seed(0))
    out = seeded_dropout(x, rate, 11)
    stayed = out != 0
    error = math.sqrt(rate * (1 - rate) / MANY)
    assert abs(float((~stayed).double().mean()) - rate) <= 4 * error
    torch.testing.assert_close(out[stayed], x[stayed] / (1 - rate))


def test_neighbours_near_and_far_are_independent():
    for seed in range(5):
        centred = kept(seed).double() - 0.7
        for lag in (1, 2, 15, 16, 17, 64, 256, 4096, 65536):
            assert abs(deviation(centred[lag:] * centred[:-lag], 0.21)) < 4.5, (seed, lag)


def test_seeds_that_differ_in_any_bit_drop_others():
    first = kept(0).double() - 0.7
    for bit in range(62):
        assert abs(deviation(first * (kept(2**bit).double() - 0.7), 0.21)) < 4.5, bit


def test_every_instruction_set_and_number_of_threads_drops_the_same(threads, monkeypatch):
    from ftmamba.kernels import states

    x = torch.randn(2**19 + 5)
    results = []
    for name in VARIANTS:
        library = KernelLibrary(LIBRARY, name)
        monkeypatch.setattr(states, "installed_library", lambda library=library: library)
        for n_threads in (1, 3):
            threads(n_threads)
            results.append(seeded_dropout(x, 0.2, 3))
    for one in results[1:]:
        assert torch.equal(one, results[0])


def test_the_gradient_is_dropped_where_the_number_was():
    x = torch.randn(1000, dtype=torch.float32, requires_grad=True)
    out = dropout(x, 0.4)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    torch.testing.assert_close(x.grad[x.grad != 0], torch.full_like(x.grad, 1 / 0.6)[x.grad != 0])


def test_torchs_generator_decides_what_is_dropped():
    torch.manual_seed(5)
    first, second = dropout(torch.ones(1000), 0.5), dropout(torch.ones(1000), 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(torch.ones(1000), 0.5), first)
    assert not torch.equal(first, second)


def test_it_is_an_operator_as_torch_wants_them():
    inputs = (torch.randn(7, 5, requires_grad=True), 0.3, 1)
    torch.library.opcheck(seeded_dropout, inputs)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (3, 17)])
def test_any_shape_will_do_and_views_too(shape):
    assert seeded_dropout(torch.ones(shape), 0.5, 2).shape == shape
    flat = torch.arange(12.0).reshape(3, 4) + 1
    turned = seeded_dropout(flat.t(), 0.5, 2)
    assert torch.equal(turned, seeded_dropout(flat.t().contiguous(), 0.5, 2))


@pytest.mark.parametrize(
    ("x", "rate", "error"),
    [
        (torch.ones(3, dtype=torch.float64), 0.5, TypeError),
        (torch.ones(3, dtype=torch.int64), 0.5, TypeError),
        (torch.ones(3), 1.0, ValueError),
        (torch.ones(3), -0.1, ValueError),
        (torch.ones(3), math.nan, ValueError),
    ],
)
def test_what_it_does_not_take_is_told(x, rate, error):
    with pytest.raises(error):
        seeded_dropout(x, rate, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_sum_drops_what_dropout_drops_both_ways(variant, threads, dtype, n_threads):
    threads(n_threads)
    generator = torch.Generator().manual_seed(0)
    hidden, x = (torch.randn(2**19 + 77, generator=generator) for _ in range(2))
    x = x.to(dtype)
    inputs = [hidden.requires_grad_(), x.requires_grad_()]
    out = seeded_dropout_sum(hidden, x, 0.4, 7)
    expected = hidden + seeded_dropout(x.float(), 0.4, 7)
    assert torch.equal(out, expected)
    weights = torch.linspace(-1, 2, len(x))
    found = torch.autograd.grad(out, inputs, weights)
    wanted = torch.autograd.grad(expected, inputs, weights)
    assert found[1].dtype == dtype
    assert all(map(torch.equal, found, wanted))


def test_a_sum_is_an_operator_as_torch_wants_them():
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.randn(7, 5, dtype=kind) for kind in (torch.float32, dtype)]
        inputs = [tensor.requires_grad_() for tensor in tensors]
        torch.library.opcheck(seeded_dropout_sum, (*inputs, 0.3, 1))


@pytest.mark.parametrize(
    ("hidden", "x", "error"),
    [
        (torch.ones(3).bfloat16(), torch.ones(3), TypeError),
        (torch.ones(3), torch.ones(3).double(), TypeError),
        (torch.ones(3), torch.ones(1), ValueError),
    ],
)
def test_what_a_sum_does_not_take_is_told(hidden, x, error):
    with pytest.raises(error):
        seeded_dropout_sum(hidden, x, 0.5, 1)


def test_the_module_sums_in_one_pass_in_training_alone(monkeypatch):
    used = []

    def spy(hidden, x, rate):
        used.append(rate)
        return hidden

    monkeypatch.setattr("modeling_ftmamba.dropout.cpu_kernel", {"dropout_sum": spy}.get)
    module, x = Dropout(0.25), torch.randn(3, 8)
    assert module.sum_with(x, x) is x
    torch.manual_seed(1)
    spread = module.sum_with(x, x[:1])
    assert spread.shape == x.shape
    assert module.sum_with(x.double(), x).dtype == torch.float64
    module.eval()
    assert torch.equal(module.sum_with(x, x), 2 * x)
    assert used == [0.25]


def test_the_module_uses_it_in_training_for_float32_and_bfloat16(monkeypatch):
    used = []

    def spy(x, rate):
        used.append((x.dtype, rate))
        return x

    monkeypatch.setattr("modeling_ftmamba.dropout.cpu_kernel", {"dropout": spy}.get)
    module = Dropout(0.25)
    x = torch.ones(8)
    module(x)
    module(x.bfloat16())
    assert used == [(torch.float32, 0.25)] * 2
    module(x.double())
    module.eval()
    assert module(x) is x
    Dropout(0.0)(x)
    Dropout(1.0)(x)
    assert len(used) == 2


def test_without_the_kernel_it_is_torchs_dropout(monkeypatch):
    monkeypatch.setattr("modeling_ftmamba.dropout.cpu_kernel", lambda _: None)
    for function in (Dropout(0.5), Dropout(0.5).after_gelu):
        torch.manual_seed(1)
        ours = function(torch.ones(100))
        torch.manual_seed(1)
        x = torch.ones(100) if isinstance(function, Dropout) else F.gelu(torch.ones(100))
        assert torch.equal(ours, F.dropout(x, 0.5))
