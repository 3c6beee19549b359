"""Draws of negatives, and the items that are none."""

from itertools import product

import numpy as np
import pytest
import torch

from ftmamba.training.negatives import KnownPositives, NegativeSampler, SeenItems


def draw(rows, n_negatives, *, kind="uniform", counts=1000 * (1,), seed=1, step=2):
    drawn = NegativeSampler(kind, np.array(counts), seed=seed).draw(rows, n_negatives, step)
    return drawn.numpy()


@pytest.mark.parametrize("kind", ["uniform", "mixed"])
def test_negatives_of_a_row_do_not_depend_on_the_other_rows(kind):
    together = draw(np.arange(100), 4, kind=kind)
    apart = draw(np.array([70, 3]), 4, kind=kind)
    np.testing.assert_array_equal(together[[70, 3]], apart)
    assert (draw(np.arange(100), 4, kind=kind, step=3) != together).any()
    assert (draw(np.arange(100), 4, kind=kind, seed=2) != together).any()


def test_draws_are_splitmix64_of_the_seed_the_step_the_row_and_the_column():
    rows, expected = [0, 5, 10**6], []
    state = int(np.random.SeedSequence([1, 2]).generate_state(1, np.uint64)[0])
    for row, column in product(rows, [1, 2, 3]):
        z = (state + (3 * row + column) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        expected.append((z ^ z >> 31) * 1000 // 2**64)
    assert draw(np.array(rows), 3).ravel().tolist() == expected


def test_negatives_are_uniform_and_independent_of_their_column():
    drawn = draw(np.arange(50_000), 2, counts=10 * (1,))
    pairs = np.bincount(drawn[:, 0] * 10 + drawn[:, 1], minlength=100)
    chi_squared = ((pairs - 500.0) ** 2 / 500.0).sum()
    assert 50 < chi_squared < 160  # 99 degrees of freedom: 99 +- 4.3 standard deviations


@pytest.mark.parametrize("kind", ["uniform", "popularity", "mixed"])
def test_the_probabilities_are_those_of_the_draws(kind):
    counts_I = np.array([0, 5, 1, 0, 14, 0])
    drawn = np.bincount(draw(np.arange(400), 500, kind=kind, counts=counts_I).ravel(), minlength=6)
    popular = counts_I / 20
    expected = {"uniform": np.full(6, 1 / 6), "popularity": popular}
    expected["mixed"] = (popular + 1 / 6) / 2
    log_q = NegativeSampler(kind, counts_I).log_q
    np.testing.assert_allclose(drawn / drawn.sum(), expected[kind], atol=0.004)
    np.testing.assert_allclose(log_q.exp(), expected[kind], rtol=1e-5)
    assert not drawn[expected[kind] == 0].any()


def test_popularity_without_interactions_is_refused():
    with pytest.raises(ValueError, match="all 3 are 0; draw them 'uniform'"):
        NegativeSampler("mixed", np.zeros(3))
    assert draw(np.arange(9), 1, kind="popularity", counts=(0, 1, 0)).ravel().tolist() == [1] * 9


def test_known_positives_are_the_pairs_of_the_users():
    known = KnownPositives(torch.tensor([4, 0, 0, 2, 0]), torch.tensor([1, 3, 0, 5, 3]), 6)
    lists = known.of_users(torch.tensor([0, 1, 4, 0, 5]))
    assert lists.tolist() == [[0, 3], [-1, -1], [1, -1], [0, 3], [-1, -1]]
    assert known.of_users(torch.tensor([1])).shape == (1, 0)


def test_seen_items_are_the_first_of_a_positions_list():
    seen = SeenItems(
        torch.tensor([[2, 0, 2], [1, -1, 3]]),
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([1, 3, 0, 3]),
    )
    expected = [[0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert seen.mask(4).int().tolist() == expected
    assert seen.at(torch.tensor([3, 1])).mask(4).int().tolist() == [expected[3], expected[1]]


def test_a_target_is_never_left_out_and_a_repeated_item_is_biased_once():
    seen = SeenItems(
        torch.tensor([[2, 0, 2, 2], [1, 3, -1, 1]]),
        torch.tensor([0, 1, 0]),
        torch.tensor([1, 2, 4]),
    )
    left_out = seen.left_out(slice(1, 3), torch.tensor([3, 0]))
    assert left_out.mask(4).int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    biased = seen.biased(slice(1, 3), -2.0)
    assert biased.bias == -2
    assert biased.lists.tolist() == [[2, 0, -1, -1], [1, 3, -1, -1]]
    assert biased.mask(4).int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
