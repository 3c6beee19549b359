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
        {"price": np.arange(len(users), dtype=np.float32)},
    )


TIMED = interactions_of(
    users=[1, 0, 1, 0, 0, 1, 0],
    items=[1, 2, 3, 4, 5, 6, 7],
    times=[50, 30, 10, 10, 30, 50, 20],
    weights=[1, 2, 3, 4, 5, 1, 2],
    n_users=3,
)


def lists(events):
    return [row[:n].tolist() for row, n in zip(events.item_ids, events.lengths, strict=True)]


@pytest.fixture
def random_interactions():
    generator = np.random.default_rng(3)
    n = 300
    users, times = generator.integers(0, 17, n), generator.integers(0, 60, n)
    return Interactions(users, np.arange(n), times, None, 19, n)


def test_events_are_in_order_of_time_and_then_of_the_file():
    events = histories_of(TIMED).newest(np.array([0, 1, 2]), 10)
    assert lists(events) == [[4, 7, 2, 5], [3, 1, 6], []]
    assert events.item_ids.tolist() == [[4, 7, 2, 5], [3, 1, 6, 0], [0, 0, 0, 0]]
    assert events.times.tolist() == [[10, 20, 30, 30], [10, 50, 50, 0], [0, 0, 0, 0]]
    assert events.features.shape == (3, 4, 0)

    untimed = histories_of(interactions_of([1, 0, 1, 1, 0], [3, 2, 1, 3, 4]))
    events = untimed.newest(np.array([1, 0]), 10)
    assert lists(events) == [[3, 1, 3], [2, 4]]
    assert events.times is None


def test_the_newest_are_kept_and_know_the_gap_to_the_event_cut_off():
    histories, names = histories_of(TIMED), ["weight", "gap", "price"]
    events = histories.newest(np.array([0, 1]), 2, features=names)
    assert lists(events) == [[2, 5], [1, 6]]
    assert events.features[..., 0].tolist() == [[2, 5], [1, 1]]
    np.testing.assert_allclose(events.features[..., 1], np.log1p([[10, 0], [40, 0]]), rtol=1e-6)
    assert events.features[..., 2].tolist() == [[1, 4], [0, 5]]
    first = histories.newest(np.array([1, 0]), 10, features=["gap"]).features[..., 0]
    np.testing.assert_allclose(first[1], np.log1p([0, 10, 10, 0]), rtol=1e-6)
    assert first[0, 0] == 0

    bare = histories_of(interactions_of([0], [1]))
    assert np.isnan(bare.newest(np.array([0]), 2, features=["gap", "weight"]).features).all()
    with pytest.raises(ValueError, match=r"among gap, weight, price, .* did you mean 'price'"):
        bare.newest(np.array([0]), 2, features=["prices"])


def test_only_events_strictly_before_a_time_count(random_interactions):
    histories = histories_of(TIMED)
    assert lists(histories.newest(np.array([0, 1]), 10, before=30)) == [[4, 7], [3]]
    before = np.array([10, 31, 50])
    found = lists(histories.newest(np.array([0, 0, 1]), 10, before=before))
    assert found == [[], [4, 7, 2, 5], [3]]

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
    data = dataclasses.replace(random_interactions, times=None)
    histories = histories_of(data)
    events = histories.newest(data.user_ids, 400, n_first=histories.n_earlier)
    for row, found in enumerate(lists(events)):
        earlier = np.flatnonzero(data.user_ids[:row] == data.user_ids[row])
        assert found == data.item_ids[earlier].tolist()
    with pytest.raises(ValueError, match=r"have none; name their time column .* cut by n_first"):
        histories.newest(np.array([0]), 5, before=3)


@pytest.mark.parametrize("split", ["random", "leave-last-out", "global-time"])
def test_an_event_of_the_future_changes_no_earlier_history(random_interactions, split):
    train = make_split(split).split(random_interactions).train
    cut = int(np.median(train.times))
    later = Interactions(np.arange(17), np.full(17, 299), np.full(17, cut), None, 19, 300)
    planted = concatenate(train, later)
    users = np.arange(19)
    before, after = (
        histories_of(each).newest(users, 50, features=["gap"], before=cut)
        for each in (train, planted)
    )
    assert lists(before) == lists(after)
    np.testing.assert_array_equal(before.features, after.features)
    assert sum(map(len, lists(before))) > 50
    events = histories_of(planted).newest(users, 50, before=cut + 1)
    assert all(items[-1] == 299 for items in lists(events)[:17])


def test_another_order_keeps_the_events_of_each_user_and_what_stands_beside_them(
    random_interactions,
):
    data = dataclasses.replace(
        random_interactions, times=None, weights=np.arange(300, dtype=np.float32)
    )
    histories = histories_of(data)
    assert not histories.is_ordered
    assert histories_of(dataclasses.replace(data, row_order=True)).is_ordered
    assert histories_of(random_interactions).is_ordered
    drawn = histories.reordered(np.random.default_rng(0))
    users = np.arange(19)
    before, after = (one.newest(users, 400, features=["weight"]) for one in (histories, drawn))
    assert list(map(sorted, lists(before))) == list(map(sorted, lists(after)))
    assert sum(a != b for a, b in zip(lists(before), lists(after), strict=True)) > 10
    inside = np.arange(after.item_ids.shape[1]) < after.lengths[:, None]
    assert after.features[inside][:, 0].tolist() == after.item_ids[inside].tolist()
    assert data.item_ids[drawn.rows].tolist() == drawn.items.item_ids.tolist()
    first_slots = [items.index(lists(before)[0][0]) for items in (
        lists(histories.reordered(np.random.default_rng(seed)).newest(users[:1], 400))[0]
        for seed in range(40)
    )]  # fmt: skip
    assert len(set(first_slots)) > 8


def test_nobody_and_nothing_are_legal_but_a_negative_length_is_not():
    histories = histories_of(TIMED)
    assert histories.newest(np.array([], int), 5).item_ids.shape == (0, 0)
    assert histories.newest(np.array([0, 1]), 0).item_ids.shape == (2, 0)
    assert histories.newest(np.array([2]), 5, before=3).lengths.tolist() == [0]
    empty = histories_of(TIMED.select(np.array([], int)))
    assert empty.newest(np.array([0, 2]), 5, before=3).item_ids.shape == (2, 0)
    with pytest.raises(ValueError, match="max_length must be >= 0, got -1"):
        histories.newest(np.array([0]), -1)


def test_context_follows_every_choice_of_rows():
    chosen = TIMED.select(np.array([4, 1]))
    assert chosen.context["price"].tolist() == [4, 1]
    assert TIMED.select(TIMED.user_ids == 1).context["price"].tolist() == [0, 2, 5]
    assert TIMED.by_time().context["price"].tolist() == [2, 3, 6, 1, 4, 0, 5]
    assert concatenate(chosen, TIMED).context["price"].tolist() == [4, 1, 0, 1, 2, 3, 4, 5, 6]
    assert concatenate(TIMED, dataclasses.replace(TIMED, context={})).context == {}
