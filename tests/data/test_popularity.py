"""Popularity counts against the definition, written as a loop."""

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.data.popularity import SECONDS_A_DAY, PopularityHistory


def interactions(item_ids, times, n_items=5):
    item_ids = np.asarray(item_ids, dtype=np.int64)
    return Interactions(
        np.zeros_like(item_ids), item_ids, np.asarray(times, dtype=np.int64), None, 1, n_items
    )


def slow_count(events, item, time, days):
    return sum(
        1
        for other, moment in zip(events.item_ids, events.times, strict=True)
        if other == item and time - days * SECONDS_A_DAY <= moment < time
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("days", [1, 7, 1000])
def test_counts_equal_the_loop(seed, days):
    generator = np.random.default_rng(seed)
    # Times on a coarse grid, so that ties and exact window ends occur.
    times = generator.integers(0, 60, size=200) * SECONDS_A_DAY // 2 + 10**9
    events = interactions(generator.integers(0, 5, size=200), times)
    asked_items = generator.integers(0, 5, size=300)
    asked_times = generator.integers(-10, 90, size=300) * SECONDS_A_DAY // 2 + 10**9

    counts = PopularityHistory(events).counts(asked_items, asked_times, days)

    expected = [
        slow_count(events, i, t, days) for i, t in zip(asked_items, asked_times, strict=True)
    ]
    assert counts.tolist() == expected
    assert max(expected) > 0


def test_an_interaction_counts_neither_itself_nor_its_own_second():
    events = interactions([0, 0, 0], [100, 100, 101])

    counts = PopularityHistory(events).counts(events.item_ids, events.times, 1)

    assert counts.tolist() == [0, 0, 2]


def test_the_window_begins_exactly_so_many_days_before():
    events = interactions([0], [1000])
    moments = np.array([1000 + SECONDS_A_DAY, 1001 + SECONDS_A_DAY])

    assert PopularityHistory(events).counts(np.zeros(2, int), moments, 1).tolist() == [1, 0]


def test_the_future_does_not_change_the_past():
    events = interactions([0, 1, 0, 1, 0], [10, 20, 30, 40, 50])
    past = events.select(events.times < 40)

    whole, part = (
        PopularityHistory(some).columns(events.item_ids[:4], events.times[:4], [1, 7])
        for some in (events, past)
    )

    np.testing.assert_array_equal(whole, part)


def test_columns_are_the_logarithm_of_one_plus_the_count():
    events = interactions([3, 3, 3, 1], [10, 20, 30, 40])
    history = PopularityHistory(events)

    catalogue = history.catalogue(40, [1, 7])

    assert catalogue.dtype == np.float32
    np.testing.assert_allclose(catalogue[:, 0], np.log([1, 1, 1, 4, 1]), rtol=1e-6)
    np.testing.assert_array_equal(catalogue[:, 0], catalogue[:, 1])
    np.testing.assert_array_equal(history.columns(np.arange(5), np.full(5, 40), [1, 7]), catalogue)


def test_no_interaction_means_no_popularity():
    history = PopularityHistory(interactions([], []))

    assert history.catalogue(5, [7]).tolist() == [[0.0]] * 5


def test_a_table_without_times_is_refused():
    events = Interactions(np.zeros(1, int), np.zeros(1, int), None, None, 1, 1)
    with pytest.raises(ValueError, match="needs the time of each interaction"):
        PopularityHistory(events)
