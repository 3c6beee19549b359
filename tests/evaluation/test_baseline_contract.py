"""One suite that every baseline passes."""

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation import Protocol, evaluate, make_baseline
from ftmamba.evaluation.tuning import BASELINES

OPTIONS = {
    "item-knn": {"n_neighbours": 20, "shrink": 1.0},
    "ease": {"regularization": 5.0},
    "ials": {"n_factors": 8, "regularization": 0.1, "n_iterations": 8},
}
PERSONAL = [name for name in BASELINES if not name.startswith("popularity")]
N = 24


def baseline_of(name):
    return make_baseline(name, OPTIONS.get(name))


def random_train(n_users=30, n_items=20, seed=0):
    """Users 28 and 29 have no interaction, nor has item 19."""
    generator = np.random.default_rng(seed)
    keys = generator.choice(28 * 19, 200, replace=False)
    return Interactions(
        keys // 19, keys % 19, generator.integers(0, 10**6, 200), None, n_users, n_items
    )


def checkerboard():
    """User u takes the items of u's parity but item u, in a circle that ends just before it."""
    users, steps = np.divmod(np.arange(N * (N // 2 - 1)), N // 2 - 1)
    items = (users + 2 * (steps + 1)) % N
    train = Interactions(users, items, steps * 86_400, None, N, N)
    withheld = Interactions(np.arange(N), np.arange(N), np.full(N, 10**6), None, N, N)
    return train, withheld


def test_there_are_baselines_to_test():
    assert {"item-knn", "ease", "ials", "markov", "pctm"} <= set(PERSONAL)
    assert {"popularity", "popularity-7d", "popularity-14d"} <= set(BASELINES)


@pytest.mark.parametrize("name", PERSONAL)
def test_the_withheld_diagonal_of_a_checkerboard_is_ranked_first(name):
    train, withheld = checkerboard()
    fitted = baseline_of(name).fit(train)
    evaluation = evaluate(fitted, test=withheld, seen=train, protocol=Protocol(k=(1,)))
    assert evaluation.mean("HR@1") == 1


@pytest.mark.parametrize("name", BASELINES)
def test_scores_are_finite_float32_over_the_whole_catalogue(name):
    train = random_train()
    scores = baseline_of(name).fit(train).scores(np.arange(30))
    assert scores.shape == (30, 20)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", BASELINES)
def test_users_without_history_get_the_popularity(name):
    train = random_train()
    scores = baseline_of(name).fit(train).scores(np.array([29, 28]))
    np.testing.assert_array_equal(scores[0], scores[1])
    if "-" not in name or name in PERSONAL:
        counts = np.bincount(train.item_ids, minlength=20)
        np.testing.assert_array_equal(scores[0], counts)


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_of_users_equals_single_users_in_any_order(name):
    fitted = baseline_of(name).fit(random_train())
    users = np.array([29, 3, 3, 0, 17])
    single = np.concatenate([fitted.scores(users[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(fitted.scores(users), single, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_a_fit_repeats_exactly(name):
    first = baseline_of(name).fit(random_train()).scores(np.arange(30))
    second = baseline_of(name).fit(random_train()).scores(np.arange(30))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", BASELINES)
def test_scores_are_the_callers_to_write_on(name):
    fitted = baseline_of(name).fit(random_train())
    before = fitted.scores(np.arange(30))
    fitted.scores(np.arange(30))[:] = -1
    np.testing.assert_array_equal(fitted.scores(np.arange(30)), before)


@pytest.mark.parametrize("name", ["item-knn", "ease", "ials"])
def test_an_interaction_told_twice_counts_once_to_a_model_of_pairs(name):
    train = random_train()
    doubled = train.select(np.concatenate([np.arange(200), np.arange(200)]))
    warm = np.arange(28)
    first = baseline_of(name).fit(train).scores(warm)
    np.testing.assert_allclose(baseline_of(name).fit(doubled).scores(warm), first, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_tables_show_a_name(name):
    baseline = baseline_of(name)
    assert baseline.name == baseline.fit(random_train()).name != ""


@pytest.mark.parametrize("name", BASELINES)
def test_fitting_on_nothing_is_refused(name):
    with pytest.raises(ValueError, match="no training interactions"):
        baseline_of(name).fit(random_train().select(np.array([], int)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("itemknn", {}, "got 'itemknn'; did you mean 'item-knn'"),
        ("ease", {"lambda": 1}, "no option 'lambda'.* it may have: regularization"),
        ("popularity", {"days": 1}, "no option 'days'; it has no options"),
        ("popularity-7d", {"days": -1}, "days must be a positive number, got -1"),
        ("ease", {"regularization": 0}, "regularization must be a positive number, got 0"),
        ("ials", {"alpha": "x"}, "alpha must be a positive number, got 'x'"),
        ("ials", {"n_factors": 2.5}, "n_factors must be a whole number >= 1, got 2.5"),
        ("item-knn", {"n_neighbours": 0}, "n_neighbours must be a whole number >= 1, got 0"),
        ("item-knn", {"shrink": -1}, "shrink must be >= 0, got -1"),
        ("markov", {"last_weights": ()}, "last_weights is empty"),
        ("markov", {"max_distance": 0}, "max_distance must be a whole number >= 1, got 0"),
        ("pctm", {"max_history": 1.5}, "max_history must be a whole number >= 1, got 1.5"),
        ("pctm", {"tau": 0}, "tau must be a positive number, got 0"),
        ("pctm", {"n_recent": 0}, "n_recent must be a whole number >= 1, got 0"),
        ("pctm", {"recent_share": 1.5}, r"recent_share must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_baseline(name, options)
