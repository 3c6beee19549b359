"""The compiled softmax of products: against float64, at sizes that fill no tile or block."""

import math

import pytest
import torch

from ftmamba.kernels import softmax_of_products as module
from ftmamba.kernels.library import KernelLibrary
from ftmamba.kernels.softmax import Listed, has_softmax_of_products, softmax_of_products

from .conftest import LIBRARY, VARIANTS, WITH_TILES
from .test_softmax import lists_of


@pytest.fixture(autouse=True, params=WITH_TILES)
def _library_with_tiles(request, monkeypatch):
    """Run on the processor's own tiles where it has any, and everywhere on tiles in plain C."""
    library = KernelLibrary(LIBRARY, request.param)
    monkeypatch.setattr(module, "installed_library", lambda: library)


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
def test_it_is_the_softmax_of_float64(threads, rows, items, size, n_threads):
    threads(n_threads)
    assert check(make_case(rows, items, size), 0.0, None).listed is None


@pytest.mark.parametrize("bias", [-math.inf, -3.25, 2.5])
def test_what_is_listed_gets_the_bias(bias):
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


def test_threads_change_nothing_but_the_order_of_sums(threads):
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


def test_products_of_torch_are_the_same_before_and_after():
    """oneDNN has shapes of its own for the tiles."""
    x, weight = torch.randn(200, 96).bfloat16(), torch.randn(48, 96).bfloat16()
    before = x @ weight.T
    check(make_case(65, 33, 20), 0.0, None)
    assert torch.equal(x @ weight.T, before)


def test_no_rows_are_no_rows():
    hidden_CD, items_ID, targets_C, share_C = make_case(1, 9, 8)
    d_items_DI = torch.zeros(8, 9)
    none = softmax_of_products(
        hidden_CD[:0], items_ID.bfloat16(), targets_C[:0], share_C[:0], None, d_items_DI
    )
    assert none.d_hidden.shape == (0, 8)
    assert (d_items_DI == 0).all()


def test_places_that_are_not_there_are_refused():
    hidden_CD, items_ID, targets_C, share_C = make_case(2, 9, 8)
    given = hidden_CD, items_ID.bfloat16()
    for wrong in (-1, 9):
        with pytest.raises(IndexError, match=r"targets of a softmax must be in 0..8"):
            softmax_of_products(*given, torch.tensor([0, wrong]), share_C)
    zeros = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(IndexError, match="`lists` of the columns"):
        softmax_of_products(*given, targets_C, share_C, Listed(torch.tensor([[9]]), zeros, zeros))


def test_other_types_and_instruction_sets_go_another_way(monkeypatch):
    hidden_CD, items_ID, _, _ = make_case(2, 9, 8)
    assert has_softmax_of_products(hidden_CD, items_ID.bfloat16())
    assert not has_softmax_of_products(hidden_CD, items_ID)
    assert not has_softmax_of_products(hidden_CD.double(), items_ID.bfloat16())
    for name in VARIANTS:
        library = KernelLibrary(LIBRARY, name)
        monkeypatch.setattr(module, "installed_library", lambda library=library: library)
        assert has_softmax_of_products(hidden_CD, items_ID.bfloat16()) == (name == "amx")


def test_emulated_tiles_are_never_chosen_by_themselves():
    assert "emulated_tiles" in WITH_TILES
    assert KernelLibrary(LIBRARY).variant == VARIANTS[0]
