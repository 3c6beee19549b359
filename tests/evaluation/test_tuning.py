import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation import Protocol, Split, tune
from ftmamba.evaluation.baselines import FittedBaseline
from ftmamba.evaluation.tuning import GRIDS


def interactions_of(users, items):
    return Interactions(np.array(users), np.array(items), None, None, 3, 6)


TRAIN = interactions_of([0, 1, 2], [0, 0, 0])
VALIDATION = interactions_of([0, 1, 2], [3, 3, 4])
TEST = interactions_of([0, 1, 2], [5, 5, 5])


class Favourite:
    """Recommends one item to everybody and notes what it was fitted on."""

    def __init__(self, item):
        self.item, self.name, self.calls = item, f"favourite {item}", []

    def fit(self, train, *, as_of=None):
        self.calls.append((train, as_of))
        popularity = (np.arange(6) == self.item).astype(np.float32)
        return FittedBaseline(self.name, lambda users: users, np.zeros(3, bool), popularity)


def split_of(validation=VALIDATION):
    return Split(TRAIN, validation, TEST, 77, 99, "by hand")


def test_the_best_on_validation_is_chosen_and_test_is_not_looked_at():
    grid = [Favourite(item) for item in (5, 4, 3)]
    tuned = tune(grid, split_of(), protocol=Protocol(k=(1,)), metric="HR@1")
    assert tuned.best is grid[2]
    assert tuned.score == pytest.approx(2 / 3)
    assert tuned.scores == pytest.approx((0, 1 / 3, 2 / 3))
    assert all(candidate.calls == [(TRAIN, 77)] for candidate in grid)


def test_the_earlier_of_equals_is_chosen():
    grid = [Favourite(1), Favourite(2)]
    assert tune(grid, split_of(), protocol=Protocol(k=(1,)), metric="HR@1").best is grid[0]


def test_there_must_be_something_to_tune_and_to_tune_on():
    with pytest.raises(ValueError, match="the grid is empty"):
        tune([], split_of())
    with pytest.raises(ValueError, match="'by hand' has none; raise its validation_fraction"):
        tune([Favourite(1)], split_of(VALIDATION.select(np.array([], int))))


@pytest.mark.parametrize("name", GRIDS)
def test_the_candidates_of_a_grid_differ(name):
    assert len(set(GRIDS[name])) == len(GRIDS[name]) > 1
