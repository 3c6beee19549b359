"""The compiled exponentials of a softmax: against float64, at sizes that fill no vector."""

import math

import pytest
import torch

from ftmamba.kernels import softmax
from ftmamba.kernels.library import KernelLibrary
from ftmamba.kernels.softmax import Listed, exponentiate

from .conftest import LIBRARY, VARIANTS


@pytest.fixture(params=[*VARIANTS, "plain torch"])
def library(request, monkeypatch):
    """Run it at one instruction set, or without the library."""
    name = request.param
    library = "none" if name == "plain torch" else KernelLibrary(LIBRARY, name)
    monkeypatch.setattr(softmax, "installed_library", lambda: library)
    return library


def logits(rows, columns, dtype):
    generator = torch.Generator().manual_seed(rows + columns)
    return (8 * torch.randn(rows, columns, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 31, 32, 33, 100, 3419])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_it_is_the_exponentials_of_float64(library, threads, dtype, columns, n_threads):
    threads(n_threads)
    x_CI = logits(45, columns, dtype)
    exact_CI = x_CI.double()
    largest_C, sum_C, _ = exponentiate(x_CI)
    wanted_CI = (exact_CI - exact_CI.amax(1, keepdim=True)).exp()
    # An exponent of 60 is rounded by 4e-6, and so is its exponential.
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(x_CI.double(), wanted_CI, rtol=rounding, atol=1e-37)
    assert torch.equal(largest_C.double(), exact_CI.amax(1))
    torch.testing.assert_close(sum_C.double(), wanted_CI.sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_apart_numbers_become_one_and_zero(library, dtype):
    x_CI = torch.tensor([[-1e30, 3e30, -math.inf] + [0.0] * 40]).to(dtype)
    _, sum_C, _ = exponentiate(x_CI)
    assert x_CI[0, 1] == 1
    assert x_CI[0, :20].sum() == 1
    torch.testing.assert_close(sum_C, torch.ones(1))


@pytest.mark.parametrize("place", [0, 20, 36])
def test_a_number_that_is_none_is_not_lost(library, place):
    x_CI = torch.zeros(3, 37)
    x_CI[1, place] = math.nan
    _, sum_C, _ = exponentiate(x_CI)
    assert sum_C.isnan().tolist() == [False, True, False]


def test_no_rows_are_no_rows(library):
    largest_C, sum_C, _ = exponentiate(torch.empty(0, 5))
    assert len(largest_C) == len(sum_C) == 0


DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def lists_of(rows, columns, bias, *, with_kept):
    """Return lists without repeats, a few columns of them none, and which numbers they are."""
    generator = torch.Generator().manual_seed(0)
    lists = torch.stack([torch.randperm(columns, generator=generator)[:40] for _ in range(5)])
    lists[:, 3] = -1
    listed = Listed(
        lists,
        torch.randint(5, (rows,), generator=generator),
        torch.randint(44, (rows,), generator=generator),
        bias,
        lists[0, 0].expand(rows).clone() if with_kept else None,
    )
    is_listed_CI = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        of_row = lists[listed.list[row], : listed.ahead[row]]
        is_listed_CI[row, of_row[of_row >= 0]] = True
    if with_kept:
        assert is_listed_CI[:, lists[0, 0]].any()
        is_listed_CI[:, lists[0, 0]] = False
    return listed, is_listed_CI


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("with_kept", [False, True])
def test_what_is_left_out_counts_as_minus_infinity(library, threads, dtype, n_threads, with_kept):
    threads(n_threads)
    x_CI = logits(700, 301, dtype)
    listed, is_listed_CI = lists_of(700, 301, -math.inf, with_kept=with_kept)
    wanted_CI = x_CI.masked_fill(is_listed_CI, -torch.inf)
    wanted = exponentiate(wanted_CI)
    found = exponentiate(x_CI, listed)
    assert torch.equal(found.largest, wanted.largest)
    assert torch.equal(found.sum, wanted.sum)
    assert found.listed is None
    assert torch.equal(x_CI, wanted_CI)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [-3.25, 0.0, 2.5])
def test_what_is_listed_gets_the_bias_and_a_sum_of_its_own(library, dtype, bias):
    x_CI = logits(700, 301, dtype)
    listed, is_listed_CI = lists_of(700, 301, bias, with_kept=False)
    wanted_CI = torch.where(is_listed_CI, x_CI + bias, x_CI)
    wanted = exponentiate(wanted_CI)
    found = exponentiate(x_CI, listed)
    assert torch.equal(found.largest, wanted.largest)
    assert torch.equal(found.sum, wanted.sum)
    assert torch.equal(x_CI, wanted_CI)
    of_listed_C = (wanted_CI.double() * is_listed_CI).sum(1).to(found.sum.dtype)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.listed, of_listed_C, rtol=rounding, atol=1e-30)


def test_lists_of_no_columns_change_nothing(library):
    zeros = torch.zeros(4, dtype=torch.int64)
    x_CI = logits(4, 9, torch.float32)
    wanted = exponentiate(x_CI.clone())
    found = exponentiate(x_CI, Listed(torch.empty(2, 0, dtype=torch.int64), zeros, zeros, -1.0))
    assert torch.equal(found.sum, wanted.sum)
    assert found.listed.tolist() == [0] * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"lists": torch.tensor([[0, 5]])},
        {"list": torch.tensor([1, 0])},
        {"kept": torch.tensor([0, 5])},
        {"ahead": torch.tensor([1])},
    ],
)
def test_places_that_are_not_there_are_refused(library, wrong):
    zeros = torch.zeros(2, dtype=torch.int64)
    given = Listed(torch.tensor([[0, 1]]), zeros, zeros + 2, kept=zeros)
    exponentiate(torch.zeros(2, 4), given)
    with pytest.raises((IndexError, RuntimeError)):
        exponentiate(torch.zeros(2, 4), given._replace(**wrong))
