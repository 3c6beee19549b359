from collections import Counter
from itertools import chain

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation import make_split, rolling_cuts
from ftmamba.evaluation.splits import SPLITS, GlobalTime, LeaveLastOut, RandomPerUser


def interactions_of(users, items, times=None, **options):
    times = None if times is None else np.array(times)
    sizes = max(users) + 1, max(items) + 1
    return Interactions(np.array(users), np.array(items), times, None, *sizes, **options)


@pytest.fixture
def random_interactions():
    generator = np.random.default_rng(3)
    n = 400
    users, times = generator.integers(0, 23, n), generator.integers(0, 150, n)
    return Interactions(users, np.arange(n), times, generator.random(n).astype(np.float32), 25, n)


def rows_of(part):
    return part.item_ids.tolist()


@pytest.mark.parametrize("name", SPLITS)
def test_every_row_falls_whole_in_one_part_and_the_same_one_each_time(name, random_interactions):
    first = make_split(name).split(random_interactions)
    second = make_split(name).split(random_interactions)

    for part in (first.train, first.validation, first.test):
        for name_of_values in ("user_ids", "times", "weights"):
            values = getattr(random_interactions, name_of_values)
            np.testing.assert_array_equal(getattr(part, name_of_values), values[part.item_ids])
    parts = [rows_of(part) for part in (first.train, first.validation, first.test)]
    assert sorted(chain(*parts)) == list(range(400))
    assert all(len(part) > 10 for part in parts)
    again = [rows_of(part) for part in (second.train, second.validation, second.test)]
    assert parts == again
    assert rows_of(first.before_test) == parts[0] + parts[1]


def test_random_split_ranks_one_draw_a_row_within_its_user(random_interactions):
    draws = np.random.default_rng(42).random(400)
    users = random_interactions.user_ids
    expected = []
    for row in range(400):
        own = draws[users == users[row]]
        if (own <= draws[row]).sum() / len(own) > 0.75:
            expected.append(row)

    assert rows_of(RandomPerUser(seed=42).split(random_interactions).test) == expected
    assert rows_of(RandomPerUser(seed=0).split(random_interactions).test) != expected


def test_random_split_gives_each_user_the_stated_fractions():
    interactions = interactions_of(np.repeat(np.arange(30), 100).tolist(), list(range(3000)))
    split = RandomPerUser(test_fraction=0.25, validation_fraction=0.2).split(interactions)
    assert set(Counter(split.test.user_ids.tolist()).values()) == {25}
    assert set(Counter(split.validation.user_ids.tolist()).values()) == {15}
    assert set(Counter(split.train.user_ids.tolist()).values()) == {60}
    split = RandomPerUser(validation_fraction=0).split(interactions_of([0] * 8, list(range(8))))
    assert (len(split.train), len(split.validation), len(split.test)) == (6, 0, 2)
    assert split.validation_time is split.test_time is None


def test_leave_last_out_goes_by_time_and_then_by_the_order_of_the_file():
    interactions = interactions_of(
        users=[0, 1, 0, 0, 1, 1, 2, 2, 0, 3],
        items=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        times=[9, 5, 5, 9, 5, 5, 1, 2, 1, 3],
    )
    split = LeaveLastOut().split(interactions)
    assert rows_of(split.test) == [3, 5]
    assert rows_of(split.validation) == [0, 4]
    # Users 2 and 3 have fewer than three interactions.
    assert rows_of(split.train) == [1, 2, 6, 7, 8, 9]


def test_global_time_cuts_at_the_quantiles_and_keeps_ties_together():
    interactions = interactions_of([0] * 11, list(range(11)), list(range(0, 110, 10)))
    split = GlobalTime(cut=0.8, test_fraction=0.1, validation_fraction=0.2).split(interactions)
    assert rows_of(split.train) == [0, 1, 2, 3, 4, 5, 6]
    assert rows_of(split.validation) == [7, 8]
    assert rows_of(split.test) == [9]
    assert (split.validation_time, split.test_time) == (61, 81)
    # Interactions at the second of a cut are all before it.
    ties = interactions_of([0] * 10, list(range(10)), [1, 1, 2, 2, 2, 2, 3, 3, 4, 4])
    for fraction in (0.3, 0):
        split = GlobalTime(cut=0.6, test_fraction=0.2, validation_fraction=fraction).split(ties)
        assert [len(part) for part in (split.train, split.validation, split.test)] == [6, 0, 2]
        assert (split.validation_time, split.test_time) == (3, 3)


def test_global_time_never_learns_from_the_future(random_interactions):
    for splitter in rolling_cuts():
        split = splitter.split(random_interactions)
        assert split.train.times.max() < split.validation_time <= split.validation.times.min()
        assert split.validation.times.max() < split.test_time <= split.test.times.min()


def test_rolling_cuts_share_no_test_row_and_reach_the_end_of_the_data(random_interactions):
    cuts = rolling_cuts()
    assert [splitter.cut for splitter in cuts] == [0.5, 0.6, 0.7, 0.8, 0.9]
    tests = (rows_of(splitter.split(random_interactions).test) for splitter in cuts)
    rows = list(chain(*tests))
    assert len(set(rows)) == len(rows)
    times = random_interactions.times
    assert set(rows) == set(np.flatnonzero(times > np.quantile(times, 0.5)).tolist())


def test_a_split_by_time_refuses_interactions_without_time():
    message = "split 'global-time' needs times, .* name their time col"
    with pytest.raises(ValueError, match=message):
        GlobalTime().split(interactions_of([0, 0, 0], [0, 1, 2]))


def test_leave_last_out_without_times_goes_by_the_order_of_the_file_and_keeps_repeats():
    users, items = [1, 0, 1, 0, 1, 0, 1, 2], [5, 3, 1, 3, 1, 3, 1, 0]
    split = LeaveLastOut().split(interactions_of(users, items, row_order=True))
    assert split.before_test.is_ordered
    assert (split.test.user_ids.tolist(), rows_of(split.test)) == ([0, 1], [3, 1])
    assert (split.validation.user_ids.tolist(), rows_of(split.validation)) == ([0, 1], [3, 1])
    assert split.train.user_ids.tolist() == [1, 0, 1, 2]
    assert rows_of(split.train) == [5, 3, 1, 0]
    # in this order a history has validation after training
    assert rows_of(split.before_test) == [5, 3, 1, 0, 3, 1]
    with pytest.raises(ValueError, match="neither times nor an order; name their 'time' or 'order"):
        LeaveLastOut().split(interactions_of(users, items))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("globaltime", {}, "got 'globaltime'; did you mean 'global-time'"),
        ("random", {"sede": 1}, "no option 'sede'; did you mean 'seed'.* test_fraction"),
        ("leave-last-out", {"seed": 1}, "it has no options"),
        ("random", {"test_fraction": 1}, "test_fraction must be between 0 and 1, got 1"),
        ("random", {"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ("random", {"test_fraction": "a"}, "test_fraction must be between 0 and 1, got 'a'"),
        ("random", {"validation_fraction": -0.1}, "validation_fraction must be between"),
        ("random", {"seed": 1.5}, "seed must be a whole number >= 0, got 1.5"),
        ("global-time", {"cut": 0}, "cut must be between 0 and 1"),
        ("global-time", {"cut": 0.95}, r"cut \+ test_fraction must be <= 1"),
        ("global-time", {"cut": 0.1}, "validation_fraction must be less than cut, got 0.1 and 0.1"),
        ("global-time", {"validation_fraction": "x"}, "validation_fraction must be"),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_split(name, options)


def test_an_empty_part_is_an_error_that_counts_the_parts():
    same_time = interactions_of([0, 0, 1, 1], [0, 1, 0, 1], [7, 7, 7, 7])
    with pytest.raises(ValueError, match=r"test part is empty .*\(training 4, validation 0, test"):
        GlobalTime().split(same_time)


@pytest.mark.parametrize(
    ("n", "fractions"),
    [(9, {}), (0, {}), (-1, {}), (2, {"test_fraction": 0.25, "validation_fraction": 0.5})],
)
def test_rolling_cuts_must_leave_room_for_training(n, fractions):
    with pytest.raises(ValueError, match=f"n must be >= 1, .* leave room for training, got n={n},"):
        rolling_cuts(n, **fractions)


def test_rolling_cuts_of_other_fractions_stand_one_test_part_apart():
    cuts = rolling_cuts(2, test_fraction=0.25, validation_fraction=0.375)
    assert [cut.cut for cut in cuts] == [0.5, 0.75]
    assert {(cut.test_fraction, cut.validation_fraction) for cut in cuts} == {(0.25, 0.375)}
    assert [cut.cut for cut in rolling_cuts(1)] == [0.9]
