"""Baselines on paper, against their definition, under one contract, and tuned."""

from dataclasses import replace

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation import Protocol, Split, evaluate, make_baseline, tune
from ftmamba.evaluation.baselines import (
    BASELINES,
    EASE,
    GRIDS,
    IALS,
    MAX_ITEMS,
    PCTM,
    FittedBaseline,
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
    proposed_baselines,
    sampled_users,
)  # fmt: skip

DAY = 86_400
OPTIONS = {
    "item-knn": {"n_neighbours": 20, "shrink": 1.0},
    "ease": {"regularization": 5.0},
    "ials": {"n_factors": 8, "regularization": 0.1, "n_iterations": 8},
}
PERSONAL = [name for name in BASELINES if not name.startswith("popularity")]
N = 24


def interactions_of(*rows, n_users=4, n_items=4, times=True):
    users, items, days = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        users, items, (days * DAY).astype(np.int64) if times else None, None, n_users, n_items
    )


def random_pairs(n_users, n_items, n):
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, n_users, n), generator.integers(0, n_items, n)
    is_pair = np.zeros((n_users, n_items))
    is_pair[users, items] = 1
    return Interactions(users, items, None, None, n_users, n_items), is_pair


def scores_of(baseline, train, *users, as_of=None):
    return baseline.fit(train, as_of=as_of).scores(np.array(users))


TRAIN = interactions_of((0, 0, 1), (0, 1, 2), (1, 1, 3), (1, 2, 9), (2, 1, 9.5), (2, 3, 10))


def test_popularity_counts_interactions():
    assert scores_of(Popularity(), TRAIN, 3, 0).tolist() == [[1, 3, 1, 1]] * 2


def test_recent_popularity_counts_a_window_with_its_first_second_and_not_its_last():
    # By default the window ends with the last training interaction.
    assert scores_of(RecentPopularity(1), TRAIN, 0).tolist() == [[0, 1, 0, 1]]
    assert scores_of(RecentPopularity(7), TRAIN, 0).tolist() == [[0, 1, 1, 1]]
    day = RecentPopularity(1)
    assert scores_of(day, TRAIN, 0, as_of=10 * DAY).tolist() == [[0, 1, 1, 0]]
    assert scores_of(day, TRAIN, 0, as_of=10 * DAY + 1).tolist() == [[0, 1, 0, 1]]
    with pytest.raises(ValueError, match="'popularity 7d' needs times"):
        scores_of(RecentPopularity(7), interactions_of((0, 0, 1), times=False), 0)


def test_item_neighbours_add_up_similarities():
    # n = (1, 3, 1, 1); one user has each of items 0, 2 and 3, and also item 1
    s = 1 / (np.sqrt(3) + 2)
    scores = scores_of(ItemKNN(n_neighbours=4, shrink=2), TRAIN, 0, 1)
    np.testing.assert_allclose(scores, [[s, s, s, s], [s, s, s, s]], rtol=1e-6)
    # Item 1 shares one user with each of 0, 2 and 3: equal, so the lowest id is its neighbour.
    s = 1 / np.sqrt(3)
    scores = scores_of(ItemKNN(n_neighbours=1, shrink=0), TRAIN, 0)
    np.testing.assert_allclose(scores, [[s, s, 0, 0]], rtol=1e-6)


def test_item_neighbours_do_not_depend_on_the_block_of_rows(monkeypatch):
    train, _ = random_pairs(20, 17, 150)
    whole = scores_of(ItemKNN(5, 1), train, *range(20))
    monkeypatch.setattr("ftmamba.evaluation.baselines.N_SIMILARITIES_AT_ONCE", 60)
    np.testing.assert_array_equal(scores_of(ItemKNN(5, 1), train, *range(20)), whole)


def test_ease_solves_its_least_squares():
    train, history = random_pairs(40, 9, 200)
    gram, expected = history.T @ history, np.zeros((9, 9))
    for item in range(9):  # ridge regression of one item on the others
        others = np.delete(np.arange(9), item)
        ridge = gram[np.ix_(others, others)] + 7 * np.eye(8)
        expected[others, item] = np.linalg.solve(ridge, gram[others, item])
    users = np.unique(train.user_ids)
    np.testing.assert_allclose(
        scores_of(EASE(7), train, *users), history[users] @ expected, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"at most 30000 items, got 30001; leave it out"):
        EASE().fit(interactions_of((0, 0, 1), n_items=MAX_ITEMS + 1))


def test_ials_minimises_its_weighted_squares():
    train, is_pair = random_pairs(12, 8, 60)
    full = IALS(n_factors=8, regularization=0.01, alpha=20, n_iterations=60)
    warm = is_pair.any(1)
    # With as many factors as items and hardly any regularization the matrix itself is the optimum.
    np.testing.assert_allclose(scores_of(full, train, *range(12))[warm], is_pair[warm], atol=0.05)
    fits = [
        scores_of(IALS(2, 1.0, alpha), train, *train.user_ids)[range(60), train.item_ids]
        for alpha in (1, 50)
    ]
    assert fits[0].mean() < 0.8 < fits[1].mean()


def test_markov_weighs_transitions_by_their_distance_and_the_last_items():
    train = interactions_of((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (1, 0, 9), (2, 1, 9))
    scores = scores_of(Markov(popularity_weight=0), train, 1, 2)
    np.testing.assert_allclose(scores, [[0, 1, 1 / 2, 1 / 3], [0, 0, 1, 1 / 2]], rtol=1e-6)
    train = interactions_of((0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 1, 1), (1, 0, 2))
    # transitions: 0 -> 1 (1), 0 -> 2 (1/2), 1 -> 2 (1), 1 -> 0 (1); user 1 has 1, then 0
    scores = scores_of(Markov((1.0, 0.5), popularity_weight=0), train, 1)
    np.testing.assert_allclose(scores, [[0.5, 1, 1, 0]], rtol=1e-6)
    # Popularity orders the items that never followed.
    scores = scores_of(Markov(), TRAIN, 0)[0]
    np.testing.assert_allclose(scores, [1e-6, 3e-6, 1 + 1e-6, 1 + 1e-6], rtol=1e-6)


def test_markov_goes_by_time_and_then_by_the_order_of_the_file():
    rows = (0, 2, 5), (0, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 1)
    markov = Markov(max_distance=1, popularity_weight=0)
    # By time and then file user 0 has 0, 1, 2; by the order of the file alone 2, 0, 1.
    timed = scores_of(markov, interactions_of(*rows), 0, 1, 2)
    assert timed.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    untimed = scores_of(markov, interactions_of(*rows, times=False), 0, 1, 2)
    assert untimed.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_pctm_adds_smoothed_evidence_over_the_history():
    # User 1 has 0, 1, 2, 0; user 2 has 2, 1: so 0 -> 1 (1), 0 -> 2 (1/2), 1 -> 2 (1),
    # 1 -> 0 (1/2), 2 -> 0 (1) and 2 -> 1 (1), those three apart being out of reach.
    rows = (1, 0, 1), (1, 1, 2), (1, 2, 3), (1, 0, 4), (2, 2, 1), (2, 1, 2)
    pctm = PCTM(
        max_distance=2, tau=8, ratio=0.5, n_recent=2, recent_share=0.9, popularity_weight=-0.3
    )
    counts = np.array(
        [[0, 1, 1 / 2, 0], [1 / 2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float64
    )
    evidence = np.log(1 + counts * 4 / 8)
    popularity = -0.3 * np.log(np.array([3, 3, 3, 1]) / 10)
    # Newest first user 1 has 0 and 2, which share .9 as 2 : 1, then 1 and 0, which share .1.
    expected = [
        0.6 * evidence[0] + 0.3 * evidence[2] + 0.05 * (evidence[1] + evidence[0]) + popularity,
        0.6 * evidence[1] + 0.3 * evidence[2] + popularity,
    ]
    np.testing.assert_allclose(scores_of(pctm, interactions_of(*rows), 1, 2), expected, rtol=1e-5)


def test_pctm_ignores_what_is_older_than_its_history():
    rows = (0, 3, 0), (0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 3, 1), (2, 2, 2)
    options = {"n_recent": 2, "recent_share": 0.5, "popularity_weight": 0}
    three, two = (
        scores_of(PCTM(max_history=n, **options), interactions_of(*rows), 0, 1) for n in (3, 2)
    )
    assert three[0].tolist() != three[1].tolist()
    assert two[0].tolist() == two[1].tolist()


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "implicit", None)
    monkeypatch.setitem(__import__("sys").modules, "implicit.cpu.als", None)
    with pytest.raises(ImportError, match=r"'iALS' needs .* 'implicit'.*ftmamba\[baselines\]"):
        IALS().fit(TRAIN)


def random_train():
    """Users 28 and 29 have no interaction, nor has item 19."""
    generator = np.random.default_rng(0)
    keys = generator.choice(28 * 19, 200, replace=False)
    return Interactions(keys // 19, keys % 19, generator.integers(0, 10**6, 200), None, 30, 20)


@pytest.mark.parametrize("name", PERSONAL)
def test_the_withheld_diagonal_of_a_checkerboard_is_ranked_first(name):
    # User u has the items of u's parity but item u, in a circle that ends just before it.
    users, steps = np.divmod(np.arange(N * (N // 2 - 1)), N // 2 - 1)
    items = (users + 2 * (steps + 1)) % N
    train = Interactions(users, items, steps * DAY, None, N, N)
    withheld = Interactions(np.arange(N), np.arange(N), np.full(N, 10**6), None, N, N)
    fitted = make_baseline(name, OPTIONS.get(name)).fit(train)
    evaluation = evaluate(fitted, test=withheld, seen=train, protocol=Protocol(k=(1,)))
    assert evaluation.mean("HR@1") == 1


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_the_contract(name):
    train = random_train()
    baseline = make_baseline(name, OPTIONS.get(name))
    fitted = baseline.fit(train)
    assert baseline.name == fitted.name != ""
    scores = fitted.scores(np.arange(30))
    assert (scores.shape, scores.dtype) == ((30, 20), np.float32)
    assert np.isfinite(scores).all()
    # A batch of users equals single ones, in any order.
    users = np.array([29, 3, 3, 0, 17])
    np.testing.assert_allclose(fitted.scores(users), scores[users], rtol=1e-6, atol=1e-6)
    # Users without history get the popularity.
    np.testing.assert_array_equal(scores[28], scores[29])
    if name in ("popularity", *PERSONAL):
        np.testing.assert_array_equal(scores[29], np.bincount(train.item_ids, minlength=20))
    # The caller may write to the scores, and a fit repeats exactly.
    fitted.scores(np.arange(30))[:] = -1
    np.testing.assert_array_equal(fitted.scores(np.arange(30)), scores)
    np.testing.assert_array_equal(baseline.fit(train).scores(np.arange(30)), scores)
    with pytest.raises(ValueError, match="no training interactions"):
        baseline.fit(train.select(np.array([], int)))


@pytest.mark.parametrize("name", ["item-knn", "ease", "ials"])
def test_a_repeated_interaction_counts_once_in_a_model_of_pairs(name):
    train, baseline = random_train(), make_baseline(name, OPTIONS[name])
    doubled = train.select(np.tile(np.arange(200), 2))
    warm = range(28)
    first = scores_of(baseline, train, *warm)
    np.testing.assert_allclose(scores_of(baseline, doubled, *warm), first, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("itemknn", {}, "got 'itemknn'; did you mean 'item-knn'"),
        ("ease", {"lambda": 1}, "no option 'lambda'.* it may have: regularization"),
        ("popularity", {"days": 1}, "no option 'days'; it has no options"),
        ("popularity-7d", {"days": -1}, "days must be a positive number, got -1"),
        ("ease", {"regularization": True}, "regularization must be a positive number, got True"),
        ("ials", {"regularization": 0}, "regularization must be a positive number, got 0"),
        ("ials", {"alpha": "x"}, "alpha must be a positive number, got 'x'"),
        ("ials", {"n_factors": 2.5}, "n_factors must be a whole number >= 1, got 2.5"),
        ("item-knn", {"n_neighbours": 0}, "n_neighbours must be a whole number >= 1, got 0"),
        ("item-knn", {"shrink": -1}, "shrink must be >= 0, got -1"),
        ("markov", {"last_weights": ()}, "last_weights is empty"),
        ("markov", {"max_distance": 0}, "max_distance must be a whole number >= 1, got 0"),
        ("pctm", {"n_recent": 0}, "n_recent must be a whole number >= 1, got 0"),
        ("pctm", {"recent_share": 1.5}, r"recent_share must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_baseline(name, options)


def pairs(*items):
    return Interactions(np.arange(3), np.array(items), None, None, 3, 6)


class Favourite:
    """Recommends one item to all users, and remembers what it was fitted on."""

    def __init__(self, item):
        self.item, self.name, self.calls = item, f"favourite {item}", []

    def fit(self, train, *, as_of=None):
        self.calls.append((train, as_of))
        popularity = (np.arange(6) == self.item).astype(np.float32)
        return FittedBaseline(self.name, lambda users: users, np.zeros(3, bool), popularity)


SPLIT = Split(pairs(0, 0, 0), pairs(3, 3, 4), pairs(5, 5, 5), 77, 99, "test split")
BY_HIT = {"protocol": Protocol(k=(1,)), "metric": "HR@1"}


def test_the_best_on_validation_is_chosen_without_the_test_part():
    grid = [Favourite(item) for item in (5, 4, 3)]
    tuned = tune(grid, SPLIT, **BY_HIT)
    assert tuned.best is grid[2]
    assert tuned.score == pytest.approx(2 / 3)
    assert list(tuned.scores.values()) == pytest.approx([0, 1 / 3, 2 / 3])
    assert all(candidate.calls == [(SPLIT.train, 77)] for candidate in grid)
    equals = [Favourite(1), Favourite(2)]
    assert tune(equals, SPLIT, **BY_HIT).best is equals[0]


def test_tuning_needs_candidates_and_validation():
    with pytest.raises(ValueError, match="the grid is empty"):
        tune([], SPLIT)
    empty = Split(SPLIT.train, pairs(0, 0, 0).select(np.array([], int)), SPLIT.test, 1, 2, "short")
    with pytest.raises(ValueError, match="'short' has none; raise its validation_fraction"):
        tune([Favourite(1)], empty)


@pytest.mark.parametrize("name", GRIDS)
def test_the_candidates_of_a_grid_differ(name):
    assert len(set(GRIDS[name])) == len(GRIDS[name]) > 1


def test_finer_steps_start_from_the_best_of_the_grid():
    rng = np.random.default_rng(0)
    starts = rng.integers(12, size=40)
    rows = [(u, (s + 5 * step) % 12, step) for u, s in enumerate(starts) for step in range(6)]
    everything = interactions_of(*rows, n_users=40, n_items=12)
    step_R = np.tile(np.arange(6), 40)
    split = Split(*(everything.select(part) for part in (step_R < 4, step_R == 4, step_R == 5)),
                  None, None, "by hand")  # fmt: skip
    tuned = tune(GRIDS["pctm"], split, protocol=Protocol(k=(1,)), metric="HR@1")
    assert set(GRIDS["pctm"]) < set(tuned.scores)
    assert tuned.score == max(tuned.scores.values()) == tuned.scores[tuned.ranked[0]]
    # What candidates share is counted once, and gives what each would count by itself.
    alone = evaluate(tuned.best.fit(split.train), test=split.validation, seen=split.train,
                     protocol=Protocol(k=(1,)))  # fmt: skip
    assert alone.mean("HR@1") == tuned.score
    memory = {}
    for one in list(tuned.scores)[:4]:
        shared = one.fit(split.train, memory=memory).scores(np.arange(40))
        np.testing.assert_array_equal(shared, one.fit(split.train).scores(np.arange(40)))


def test_transitions_do_not_depend_on_how_many_pairs_are_counted_at_once(monkeypatch):
    train, _ = random_pairs(20, 17, 150)
    whole = PCTM().neighbours(train).toarray()
    monkeypatch.setattr("ftmamba.evaluation.baselines.N_PAIRS_AT_ONCE", 300)
    np.testing.assert_allclose(PCTM().neighbours(train).toarray(), whole, rtol=1e-6)


def test_baselines_are_proposed_for_what_the_interactions_have_and_cost():
    names, reasons = proposed_baselines(TRAIN)
    assert names == (
        "popularity",
        "popularity-recent",
        "item-knn",
        "ease",
        "ials",
        "markov",
        "pctm",
    )
    assert reasons == ()
    large = interactions_of((0, 0, 1), n_items=20_000, times=False)
    names, reasons = proposed_baselines(large)
    assert names == ("popularity", "item-knn", "ials")
    assert reasons == (
        "evaluation.baselines: without ease, which would take 80 minutes for 4 users and 20,000 "
        "items; name it to have it",
    )
    assert (
        "take more than memory" in proposed_baselines(replace(large, n_items=MAX_ITEMS + 1))[1][0]
    )


def test_a_sample_of_many_users_is_seeded_and_smaller_for_large_catalogues(monkeypatch):
    everyone = Interactions(np.arange(900), np.zeros(900, int), None, None, 900, 10)
    assert sampled_users(everyone).tolist() == list(range(900))
    sample = sampled_users(replace(everyone, n_items=10**6), 3)
    assert len(set(sample.tolist())) == 500
    np.testing.assert_array_equal(sample, sampled_users(replace(everyone, n_items=10**6), 3))
