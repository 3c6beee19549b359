"""Five ranks on paper: hits at ranks 2 and 4; the second user has none, the third all."""

from math import log2

import numpy as np
import pytest

from ftmamba.evaluation.metrics import METRICS

HITS = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
N_RELEVANT = np.array([3, 2, 7])
TWO_HITS = 1 / log2(3) + 1 / log2(5)
BEST_OF_THREE = 1 + 1 / log2(3) + 1 / log2(4)
ON_PAPER = {
    "P": [2 / 5, 0, 1],
    "R": [2 / 3, 0, 5 / 7],
    "MRR": [1 / 2, 0, 1],
    "HR": [1, 0, 1],
    "NDCG": [TWO_HITS / BEST_OF_THREE, 0, 1],
    "MAP": [(1 / 2 + 2 / 4) / 3, 0, 1],
}


@pytest.mark.parametrize("metric", METRICS)
def test_metric_equals_the_figure_on_paper(metric):
    np.testing.assert_allclose(METRICS[metric](HITS, N_RELEVANT), ON_PAPER[metric], rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_one_place_says_the_same_by_every_metric_but_recall(metric):
    expected = [0.25, 0.0] if metric == "R" else [1.0, 0.0]
    values = METRICS[metric](np.array([[True], [False]]), np.array([4, 4]))
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_list_of_a_user_with_few_test_items_scores_one(metric):
    perfect = np.array([[True, True, False, False, False]])
    expected = 2 / 5 if metric == "P" else 1.0
    np.testing.assert_allclose(METRICS[metric](perfect, np.array([2])), [expected], rtol=1e-12)
