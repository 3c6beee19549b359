"""Rankings and scores done on paper, or checked against the definition."""

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation.baselines import (
    EASE,
    IALS,
    MAX_ITEMS,
    PCTM,
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
    require,
)

DAY = 86_400


def interactions_of(*rows, n_users=4, n_items=4, times=True):
    users, items, days = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        users, items, (days * DAY).astype(np.int64) if times else None, None, n_users, n_items
    )


TRAIN = interactions_of((0, 0, 1), (0, 1, 2), (1, 1, 3), (1, 2, 9), (2, 1, 9.5), (2, 3, 10))


def test_popularity_counts_interactions():
    scores = Popularity().fit(TRAIN).scores(np.array([3, 0]))
    assert scores.tolist() == [[1, 3, 1, 1]] * 2


def test_recent_popularity_counts_the_days_up_to_the_last_training_interaction():
    assert RecentPopularity(1).fit(TRAIN).scores(np.array([0])).tolist() == [[0, 1, 0, 1]]
    assert RecentPopularity(7).fit(TRAIN).scores(np.array([0])).tolist() == [[0, 1, 1, 1]]


def test_recent_popularity_has_its_first_instant_and_not_its_last():
    fitted = RecentPopularity(1).fit(TRAIN, as_of=10 * DAY)
    assert fitted.scores(np.array([0])).tolist() == [[0, 1, 1, 0]]
    later = RecentPopularity(1).fit(TRAIN, as_of=10 * DAY + 1)
    assert later.scores(np.array([0])).tolist() == [[0, 1, 0, 1]]


def test_recent_popularity_needs_times():
    train = interactions_of((0, 0, 1), times=False)
    with pytest.raises(ValueError, match="'popularity 7d' needs times"):
        RecentPopularity(7).fit(train)


def test_item_neighbours_add_up_similarities():
    # n = (1, 3, 1, 1); items 0, 2 and 3 were each taken once, by a user who also took item 1
    s = 1 / (np.sqrt(3) + 2)
    scores = ItemKNN(n_neighbours=4, shrink=2).fit(TRAIN).scores(np.array([0, 1]))
    np.testing.assert_allclose(scores, [[s, s, s, s], [s, s, s, s]], rtol=1e-6)


def test_only_the_nearest_neighbours_of_each_item_count():
    # item 1 shares one user with each of 0, 2 and 3: equal, so the lowest id is its neighbour
    s = 1 / np.sqrt(3)
    scores = ItemKNN(n_neighbours=1, shrink=0).fit(TRAIN).scores(np.array([0]))
    np.testing.assert_allclose(scores, [[s, s, 0, 0]], rtol=1e-6)


def test_item_neighbours_do_not_depend_on_the_block_of_rows(monkeypatch):
    generator = np.random.default_rng(0)
    train = Interactions(
        generator.integers(0, 20, 150), generator.integers(0, 17, 150), None, None, 20, 17
    )
    whole = ItemKNN(5, 1).fit(train).scores(np.arange(20))
    monkeypatch.setattr("ftmamba.evaluation.baselines.N_SIMILARITIES_AT_ONCE", 60)
    np.testing.assert_array_equal(ItemKNN(5, 1).fit(train).scores(np.arange(20)), whole)


def test_ease_solves_its_least_squares():
    generator = np.random.default_rng(0)
    train = Interactions(
        generator.integers(0, 40, 200), generator.integers(0, 9, 200), None, None, 40, 9
    )
    history = np.zeros((40, 9))
    history[train.user_ids, train.item_ids] = 1
    gram, expected = history.T @ history, np.zeros((9, 9))
    for item in range(9):  # ridge regression of one item on the others
        others = np.delete(np.arange(9), item)
        ridge = gram[np.ix_(others, others)] + 7 * np.eye(8)
        expected[others, item] = np.linalg.solve(ridge, gram[others, item])
    users = np.unique(train.user_ids)
    scores = EASE(7).fit(train).scores(users)
    np.testing.assert_allclose(scores, history[users] @ expected, atol=1e-5)


def test_ease_refuses_a_catalogue_it_cannot_invert():
    train = interactions_of((0, 0, 1), n_items=MAX_ITEMS + 1)
    with pytest.raises(ValueError, match=r"at most 30000 items, got 30001; leave it out"):
        EASE().fit(train)


def test_ials_minimises_its_weighted_squares():
    generator = np.random.default_rng(0)
    train = Interactions(
        generator.integers(0, 12, 60), generator.integers(0, 8, 60), None, None, 12, 8
    )
    fitted = IALS(n_factors=8, regularization=0.01, alpha=20, n_iterations=60).fit(train)
    taken = np.zeros((12, 8), bool)
    taken[train.user_ids, train.item_ids] = True
    scores = fitted.scores(np.arange(12))
    # as many factors as items and hardly any regularization: the matrix itself is the optimum
    np.testing.assert_allclose(scores[taken.any(1)], taken[taken.any(1)], atol=0.05)


def test_ials_fits_what_was_taken_the_better_the_more_it_weighs():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 12, 60), generator.integers(0, 8, 60)
    train = Interactions(users, items, None, None, 12, 8)
    fits = [IALS(2, 1.0, alpha).fit(train).scores(users)[range(60), items] for alpha in (1, 50)]
    assert fits[0].mean() < fits[1].mean()
    assert fits[1].mean() > 0.8


def test_markov_weighs_transitions_by_one_over_their_distance():
    train = interactions_of((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (1, 0, 9), (2, 1, 9))
    scores = Markov(popularity_weight=0).fit(train).scores(np.array([1, 2]))
    np.testing.assert_allclose(scores, [[0, 1, 1 / 2, 1 / 3], [0, 0, 1, 1 / 2]], rtol=1e-6)


def test_markov_adds_the_earlier_item_at_its_weight():
    train = interactions_of((0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 1, 1), (1, 0, 2))
    # transitions: 0 -> 1 (1), 0 -> 2 (1/2), 1 -> 2 (1), 1 -> 0 (1); user 1 took 1, then 0
    scores = Markov((1.0, 0.5), popularity_weight=0).fit(train).scores(np.array([1]))
    np.testing.assert_allclose(scores, [[0.5, 1, 1, 0]], rtol=1e-6)


def test_markov_goes_by_time_and_then_by_the_order_of_the_file():
    rows = (0, 2, 5), (0, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 1)
    markov = Markov(max_distance=1, popularity_weight=0)
    # by time and then file, user 0 took 0, 1, 2
    timed = markov.fit(interactions_of(*rows)).scores(np.array([0, 1, 2]))
    assert timed.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    # by the order of the file alone 2, 0, 1
    untimed = markov.fit(interactions_of(*rows, times=False)).scores(np.array([0, 1, 2]))
    assert untimed.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_pctm_adds_smoothed_evidence_over_the_history():
    # user 1 took 0, 1, 2, 0; user 2 took 2, 1: so 0 -> 1 (1), 0 -> 2 (1/2), 1 -> 2 (1),
    # 1 -> 0 (1/2), 2 -> 0 (1) and 2 -> 1 (1), those three apart being out of reach
    rows = (1, 0, 1), (1, 1, 2), (1, 2, 3), (1, 0, 4), (2, 2, 1), (2, 1, 2)
    pctm = PCTM(
        max_distance=2, tau=8, ratio=0.5, n_recent=2, recent_share=0.9, popularity_weight=-0.3
    )
    counts = np.array(
        [[0, 1, 1 / 2, 0], [1 / 2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float64
    )
    evidence = np.log(1 + counts * 4 / 8)
    popularity = -0.3 * np.log(np.array([3, 3, 3, 1]) / 10)
    # newest first user 1 has 0 and 2, which share .9 as 2 : 1, then 1 and 0, which share .1
    expected = [
        0.6 * evidence[0] + 0.3 * evidence[2] + 0.05 * (evidence[1] + evidence[0]) + popularity,
        0.6 * evidence[1] + 0.3 * evidence[2] + popularity,
    ]
    scores = pctm.fit(interactions_of(*rows)).scores(np.array([1, 2]))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_pctm_forgets_what_is_older_than_its_history():
    rows = (0, 3, 0), (0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 3, 1), (2, 2, 2)
    options = {"n_recent": 2, "recent_share": 0.5, "popularity_weight": 0}
    whole, two = (
        PCTM(max_history=n, **options).fit(interactions_of(*rows)).scores(np.array([0, 1]))
        for n in (3, 2)
    )
    assert whole[0].tolist() != whole[1].tolist()
    assert two[0].tolist() == two[1].tolist()


def test_popularity_orders_what_never_followed():
    scores = Markov().fit(TRAIN).scores(np.array([0]))[0]
    np.testing.assert_allclose(scores, [1e-6, 3e-6, 1 + 1e-6, 1 + 1e-6], rtol=1e-6)


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "implicit", None)
    monkeypatch.setitem(__import__("sys").modules, "implicit.cpu.als", None)
    with pytest.raises(ImportError, match=r"'iALS' needs .* 'implicit'.*ftmamba\[baselines\]"):
        IALS().fit(TRAIN)
    with pytest.raises(ImportError, match="needs the package 'no_such_package'"):
        require("no_such_package.part", "iALS")
