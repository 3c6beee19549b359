from itertools import product

import pytest
import torch

from modeling_ftmamba.catalogue import top_k


def slow_top_k(scores, k):
    return [
        sorted(range(len(row)), key=lambda item, row=row: (-row[item], item))[:k]
        for row in scores.tolist()
    ]


def test_both_zeros_tie():
    assert top_k(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_catalogue_is_refused(k):
    with pytest.raises(ValueError, match=f"between 1 and the 5 items of the catalogue, got {k}"):
        top_k(torch.zeros(2, 5), k)


@pytest.mark.parametrize(
    ("n_items", "k"),
    [(37, 1), (37, 10), (37, 37), *product([352, 353, 383, 2000], [1, 4])],
)
@pytest.mark.parametrize("n_levels", [1, 2, 40, 10**6])
def test_top_k_is_a_full_sort_by_score_then_item(n_items, n_levels, k):
    scores = torch.randint(0, n_levels, (60, n_items)).float()
    scores[:5, : n_items - 2] = -torch.inf
    scores[5:10, -1] = n_levels
    values, ids = top_k(scores, k)
    assert ids.tolist() == slow_top_k(scores, k)
    assert torch.equal(values, scores.gather(1, ids))


def test_scores_that_lie_apart_in_memory_are_ranked():
    scores = torch.randint(0, 50, (900, 30)).float().T
    assert top_k(scores, 4)[1].tolist() == slow_top_k(scores, 4)
