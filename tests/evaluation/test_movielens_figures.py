"""NDCG@10 on MovieLens-100K, from an independent program written before this one."""

import pytest

from ftmamba.evaluation import evaluate, make_split
from ftmamba.evaluation.baselines import EASE, IALS, ItemKNN, Markov, Popularity, RecentPopularity

ALL_RATINGS = [
    ("random", Popularity(), 0.2475, 0.005),
    ("random", ItemKNN(200, 50), 0.3887, 0.005),
    ("random", EASE(500), 0.4920, 0.005),
    ("random", IALS(32, 30.0, 5.0), 0.4939, 0.005),
    ("leave-last-out", Popularity(), 0.0440, 0.003),
    ("leave-last-out", ItemKNN(50, 0), 0.0534, 0.003),
    ("leave-last-out", EASE(100), 0.0723, 0.003),
    ("leave-last-out", IALS(128, 10.0, 5.0), 0.0752, 0.003),
    ("leave-last-out", Markov(), 0.0887, 0.003),
]
GLOBAL_TIME = [
    (Popularity(), 0.135, 0.335),
    (RecentPopularity(7), 0.215, 0.363),
    (RecentPopularity(14), 0.223, 0.372),
    (ItemKNN(50, 0), 0.147, 0.335),
    (EASE(1000), 0.161, 0.335),
    (IALS(64, 10.0, 1.0), 0.151, 0.335),
]


def evaluated(baseline, split):
    fitted = baseline.fit(split.before_test, as_of=split.test_time)
    return evaluate(fitted, test=split.test, seen=split.before_test)


@pytest.mark.parametrize(("name", "baseline", "expected", "error"), ALL_RATINGS)
def test_splits_of_all_ratings(movielens, name, baseline, expected, error):
    options = {"seed": 42} if name == "random" else {}
    evaluation = evaluated(baseline, make_split(name, options).split(movielens))
    assert name != "random" or len(evaluation) == 943
    assert evaluation.mean("NDCG@10") == pytest.approx(expected, abs=error)


@pytest.mark.parametrize(("baseline", "warm", "cold"), GLOBAL_TIME)
def test_global_time_cut_of_liked_films(movielens, baseline, warm, cold):
    liked = movielens.select(movielens.weights >= 4)
    evaluation = evaluated(baseline, make_split("global-time").split(liked))
    assert (len(evaluation.warm), len(evaluation.cold)) == (76, 77)
    assert evaluation.warm.mean("NDCG@10") == pytest.approx(warm, abs=0.005)
    assert evaluation.cold.mean("NDCG@10") == pytest.approx(cold, abs=0.005)
