"""The compiled exponentials, and the softmax of products on tiles: against float64.

Sizes fill no vector, tile or block.
"""

import math

import pytest
import torch

from ftmamba.kernels.library import KernelLibrary
from ftmamba.kernels.softmax import (
    Listed,
    exponentiate,
    has_softmax_of_products,
    seconds_of_products,
    softmax_of_products,
)

from .conftest import LIBRARY, VARIANTS, WITH_TILES


@pytest.fixture(params=[*VARIANTS, "plain torch"])
def library(request, use):
    """Run it at one instruction set, or without the library."""
    name = request.param
    use("none" if name == "plain torch" else KernelLibrary(LIBRARY, name))


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


@pytest.fixture(params=WITH_TILES)
def tiles(request, use):
    """Run on the processor's own tiles where it has any, and everywhere on tiles in plain C."""
    use(KernelLibrary(LIBRARY, request.param))


def whole_numbers(rows, size, seed):
    """Factors whose products bfloat16 holds exactly, so that only what follows is rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (rows, size), generator=generator).float()


def make_case(rows, items, size):
    generator = torch.Generator().manual_seed(0)
    targets_C = torch.randint(items, (rows,), generator=generator)
    share_C = torch.rand(rows, generator=generator)
    return whole_numbers(rows, size, 1), whole_numbers(items, size, 2), targets_C, share_C


def assert_near(found, wanted):
    """Near as numbers that are rounded to bfloat16 and then summed up are."""
    assert (found - wanted).norm() < 0.004 * wanted.norm()


def wanted_of(hidden_CD, items_ID, targets_C, share_C, bias_CI):
    logits_CI = hidden_CD.double() @ items_ID.double().T
    target_C = logits_CI.gather(1, targets_C[:, None])[:, 0]
    p_CI = (logits_CI + bias_CI).softmax(1)
    d_hidden_CD = share_C[:, None] * (p_CI @ items_ID.double())
    d_items_DI = (share_C[:, None] * hidden_CD).double().T @ p_CI
    return (logits_CI + bias_CI).logsumexp(1), target_C, d_hidden_CD, d_items_DI


def check(case, bias_CI, listed):
    hidden_CD, items_ID, targets_C, share_C = case
    d_items_DI = torch.ones(items_ID.T.shape)
    found = softmax_of_products(
        hidden_CD, items_ID.bfloat16(), targets_C, share_C, listed, d_items_DI
    )
    log_sum_C, target_C, d_hidden_CD, wanted_items_DI = wanted_of(*case, bias_CI)
    exponentials = found.exponentials
    torch.testing.assert_close(
        (exponentials.sum.log() + exponentials.largest).double(), log_sum_C, rtol=1e-6, atol=1e-5
    )
    assert torch.equal(found.target.double(), target_C)
    assert_near(found.d_hidden, d_hidden_CD)
    assert_near(d_items_DI - 1, wanted_items_DI)
    without = softmax_of_products(hidden_CD, items_ID.bfloat16(), targets_C, share_C, listed)
    assert without.d_hidden is None
    assert torch.equal(without.exponentials.sum, exponentials.sum)
    return exponentials


@pytest.mark.parametrize("rows", [1, 31, 64, 65, 200])
@pytest.mark.parametrize(("items", "size"), [(2, 64), (31, 8), (33, 20), (100, 32), (3419, 64)])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_it_is_the_softmax_of_float64(tiles, threads, rows, items, size, n_threads):
    threads(n_threads)
    assert check(make_case(rows, items, size), 0.0, None).listed is None


@pytest.mark.parametrize("bias", [-math.inf, -3.25, 2.5])
def test_what_is_listed_gets_the_bias_among_products(tiles, bias):
    case = make_case(200, 301, 24)
    listed, is_listed_CI = lists_of(200, 301, bias, with_kept=math.isinf(bias))
    bias_CI = torch.zeros(200, 301).double().masked_fill(is_listed_CI, bias)
    exponentials = check(case, bias_CI, listed)
    if math.isinf(bias):
        assert exponentials.listed is None
        return
    p_CI = (case[0].double() @ case[1].double().T + bias_CI).softmax(1)
    shares_C = exponentials.listed / exponentials.sum
    torch.testing.assert_close(
        shares_C.double(), (p_CI * is_listed_CI).sum(1), rtol=4e-3, atol=1e-6
    )


def test_threads_change_nothing_but_the_order_of_sums(tiles, threads):
    case = make_case(300, 1000, 40)  # numbers enough for four threads
    found = []
    for n_threads in (1, 4):
        threads(n_threads)
        d_items_DI = torch.zeros(40, 1000)
        hidden_CD, items_ID, targets_C, share_C = case
        out = softmax_of_products(
            hidden_CD, items_ID.bfloat16(), targets_C, share_C, None, d_items_DI
        )
        found.append((out, d_items_DI))
    (one, items_of_one), (four, items_of_four) = found
    assert torch.equal(one.d_hidden, four.d_hidden)
    assert torch.equal(one.exponentials.sum, four.exponentials.sum)
    torch.testing.assert_close(items_of_one, items_of_four, rtol=1e-4, atol=1e-4)


def test_products_of_torch_are_the_same_before_and_after(tiles):
    """oneDNN has shapes of its own for the tiles."""
    x, weight = torch.randn(200, 96).bfloat16(), torch.randn(48, 96).bfloat16()
    before = x @ weight.T
    check(make_case(65, 33, 20), 0.0, None)
    assert torch.equal(x @ weight.T, before)


def test_no_rows_have_no_products(tiles):
    hidden_CD, items_ID, targets_C, share_C = make_case(1, 9, 8)
    d_items_DI = torch.zeros(8, 9)
    none = softmax_of_products(
        hidden_CD[:0], items_ID.bfloat16(), targets_C[:0], share_C[:0], None, d_items_DI
    )
    assert none.d_hidden.shape == (0, 8)
    assert (d_items_DI == 0).all()


def test_targets_and_lists_that_are_not_there_are_refused(tiles):
    hidden_CD, items_ID, targets_C, share_C = make_case(2, 9, 8)
    given = hidden_CD, items_ID.bfloat16()
    for wrong in (-1, 9):
        with pytest.raises(IndexError, match=r"targets of a softmax must be in 0..8"):
            softmax_of_products(*given, torch.tensor([0, wrong]), share_C)
    zeros = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(IndexError, match="`lists` of the columns"):
        softmax_of_products(*given, targets_C, share_C, Listed(torch.tensor([[9]]), zeros, zeros))


def test_other_types_and_instruction_sets_go_another_way(tiles, use):
    hidden_CD, items_ID, _, _ = make_case(2, 9, 8)
    assert has_softmax_of_products(hidden_CD, items_ID.bfloat16())
    assert not has_softmax_of_products(hidden_CD, items_ID)
    assert not has_softmax_of_products(hidden_CD.double(), items_ID.bfloat16())
    for name in VARIANTS:
        use(KernelLibrary(LIBRARY, name))
        assert has_softmax_of_products(hidden_CD, items_ID.bfloat16()) == (name == "amx")


def test_emulated_tiles_are_never_chosen_by_themselves():
    assert "emulated_tiles" in WITH_TILES
    assert KernelLibrary(LIBRARY).variant == VARIANTS[0]


def test_both_types_of_products_are_measured(tiles):
    assert all(seconds > 0 for seconds in seconds_of_products(100, 50, 8, repeats=1))
