"""Histories: in order, cut before an event, and never with the event itself or a later one."""

import dataclasses

import numpy as np
import pytest

from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions, concatenate
from ftmamba.evaluation import make_split


def interactions_of(users, items, times=None, weights=None, n_users=None):
    return Interactions(
        np.array(users),
        np.array(items),
        None if times is None else np.array(times),
        None if weights is None else np.array(weights, np.float32),
        n_users or max(users) + 1,
        max(items) + 1,
    )


TIMED = interactions_of(
    users=[1, 0, 1, 0, 0, 1, 0],
    items=[1, 2, 3, 4, 5, 6, 7],
    times=[50, 30, 10, 10, 30, 50, 20],
    weights=[1, 2, 3, 4, 5, 1, 2],
    n_users=3,
)


def lists(events):
    return [
        row[:length].tolist() for row, length in zip(events.item_ids, events.lengths, strict=True)
    ]


@pytest.fixture
def random_interactions():
    generator = np.random.default_rng(3)
    n = 300
    return Interactions(
        generator.integers(0, 17, n), np.arange(n), generator.integers(0, 60, n), None, 19, n
    )


def test_events_are_in_order_of_time_and_then_of_the_file():
    events = histories_of(TIMED).newest(np.array([0, 1, 2]), 10)
    assert lists(events) == [[4, 7, 2, 5], [3, 1, 6], []]
    assert events.item_ids.tolist() == [[4, 7, 2, 5], [3, 1, 6, 0], [0, 0, 0, 0]]
    assert events.times.tolist() == [[10, 20, 30, 30], [10, 50, 50, 0], [0, 0, 0, 0]]
    assert events.features.shape == (3, 4, 0)


def test_without_times_the_order_of_the_file_is_the_order_and_repeats_stay():
    histories = histories_of(interactions_of([1, 0, 1, 1, 0], [3, 2, 1, 3, 4]))
    events = histories.newest(np.array([1, 0]), 10)
    assert lists(events) == [[3, 1, 3], [2, 4]]
    assert events.times is None


def test_the_newest_are_kept_and_know_the_gap_to_the_event_cut_off():
    events = histories_of(TIMED).newest(np.array([0, 1]), 2, features=["gap"])
    assert lists(events) == [[2, 5], [1, 6]]
    np.testing.assert_allclose(events.features[..., 0], np.log1p([[10, 0], [40, 0]]), rtol=1e-6)


def test_the_gap_of_a_users_first_event_is_zero():
    events = histories_of(TIMED).newest(np.array([1, 0]), 10, features=["gap"])
    assert events.features[:, 0, 0].tolist() == [0, 0]
    np.testing.assert_allclose(events.features[1, :, 0], np.log1p([0, 10, 10, 0]), rtol=1e-6)


def test_only_events_strictly_before_a_time_count():
    histories = histories_of(TIMED)
    assert lists(histories.newest(np.array([0, 1]), 10, before=30)) == [[4, 7], [3]]
    assert lists(histories.newest(np.array([0, 0, 1]), 10, before=np.array([10, 31, 50]))) == [
        [],
        [4, 7, 2, 5],
        [3],
    ]


def test_what_came_before_an_event_is_found_by_bisection_as_by_hand(random_interactions):
    data = random_interactions
    events = histories_of(data).newest(data.user_ids, 5, before=data.times)
    n_events = 0
    for row, found in enumerate(lists(events)):
        is_before = (data.user_ids == data.user_ids[row]) & (data.times < data.times[row])
        rows = np.flatnonzero(is_before)
        expected = rows[np.argsort(data.times[rows], kind="stable")][-5:]
        assert found == data.item_ids[expected].tolist()
        assert data.item_ids[row] not in found
        n_events += len(found)
    assert n_events > 500


def test_what_came_before_an_event_is_counted_where_there_is_no_time(random_interactions):
    data = interactions_of(
        random_interactions.user_ids.tolist(), random_interactions.item_ids.tolist()
    )
    histories = histories_of(data)
    events = histories.newest(data.user_ids, 400, n_first=histories.n_earlier)
    for row, found in enumerate(lists(events)):
        earlier = np.flatnonzero(data.user_ids[:row] == data.user_ids[row])
        assert found == data.item_ids[earlier].tolist()


@pytest.mark.parametrize("split", ["random", "leave-last-out", "global-time"])
def test_an_event_of_the_future_changes_no_earlier_history(random_interactions, split):
    train = make_split(split).split(random_interactions).train
    cut = int(np.median(train.times))
    planted = interactions_of(
        [*train.user_ids, *range(17)],
        [*train.item_ids, *[299] * 17],
        [*train.times, *[cut] * 17],
        n_users=19,
    )
    users = np.arange(19)
    before, after = (
        histories_of(each).newest(users, 50, features=["gap"], before=cut)
        for each in (train, planted)
    )
    assert lists(before) == lists(after)
    np.testing.assert_array_equal(before.features, after.features)
    assert sum(map(len, lists(before))) > 50
    later = histories_of(planted).newest(users, 50, before=cut + 1)
    assert all(items[-1] == 299 for items in lists(later)[:17])


def test_features_stand_in_the_order_asked_and_are_nan_where_the_data_has_none():
    events = histories_of(TIMED).newest(np.array([1]), 2, features=["weight", "gap"])
    np.testing.assert_allclose(events.features, [[[1, np.log1p(40)], [1, 0]]], rtol=1e-6)
    bare = histories_of(interactions_of([0], [1]))
    assert np.isnan(bare.newest(np.array([0]), 2, features=["gap", "weight"]).features).all()
    with pytest.raises(ValueError, match="got 'gaps'; did you mean 'gap'"):
        bare.newest(np.array([0]), 2, features=["gaps"])


def test_nobody_and_nothing_are_legal():
    histories = histories_of(TIMED)
    assert histories.newest(np.array([], int), 5).item_ids.shape == (0, 0)
    assert histories.newest(np.array([0, 1]), 0).item_ids.shape == (2, 0)
    assert histories.newest(np.array([2]), 5, before=3).lengths.tolist() == [0]
    empty = histories_of(TIMED.select(np.array([], int)))
    assert empty.newest(np.array([0, 2]), 5, before=3).item_ids.shape == (2, 0)


def test_a_time_needs_times_and_a_length_is_not_negative():
    histories = histories_of(interactions_of([0], [1]))
    with pytest.raises(ValueError, match=r"have none; name their time column .* cut by n_first"):
        histories.newest(np.array([0]), 5, before=3)
    with pytest.raises(ValueError, match="max_length must be >= 0, got -1"):
        histories.newest(np.array([0]), -1)


def test_context_keeps_to_its_events():
    histories = histories_of(dataclasses.replace(TIMED, context={"price": np.arange(7.0)}))
    events = histories.newest(np.array([1, 0]), 3, features=["price", "weight"])
    assert lists(events) == [[3, 1, 6], [7, 2, 5]]
    assert events.features[..., 0].tolist() == [[2, 0, 5], [6, 1, 4]]
    assert events.features[..., 1].tolist() == [[3, 1, 1], [2, 2, 5]]
    with pytest.raises(ValueError, match=r"among gap, weight, price, .* did you mean 'price'"):
        histories.newest(np.array([1]), 3, features=["prices"])


def test_context_follows_every_choice_of_rows():
    data = dataclasses.replace(TIMED, context={"price": np.arange(7, dtype=np.float32)})
    chosen = data.select(np.array([4, 1]))
    assert chosen.context["price"].tolist() == [4, 1]
    assert data.select(data.user_ids == 1).context["price"].tolist() == [0, 2, 5]
    assert data.by_time().context["price"].tolist() == [2, 3, 6, 1, 4, 0, 5]
    joined = concatenate(chosen, data)
    assert joined.context["price"].tolist() == [4, 1, 0, 1, 2, 3, 4, 5, 6]
    assert concatenate(data, TIMED).context == {}
