"""Popularity against the definition, written as a loop."""

import numpy as np
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.data.popularity import SECONDS_A_DAY, PopularityHistory


def interactions(item_ids, times, n_items=5):
    item_ids = np.asarray(item_ids, dtype=np.int64)
    return Interactions(
        np.zeros_like(item_ids), item_ids, np.asarray(times, dtype=np.int64), None, 1, n_items
    )


def counts(events, item_ids, times, days=1):
    columns = PopularityHistory(events).columns(np.asarray(item_ids), np.asarray(times), [days])
    return np.expm1(columns[:, 0]).round().astype(int).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_columns_are_the_logarithm_of_one_plus_the_count_of_the_loop(seed):
    generator = np.random.default_rng(seed)
    # Times on a coarse grid, so that ties and exact window ends occur.
    times = generator.integers(0, 60, size=200) * SECONDS_A_DAY // 2 + 10**9
    events = interactions(generator.integers(0, 5, size=200), times)
    asked_items = generator.integers(0, 5, size=300)
    asked_times = generator.integers(-10, 90, size=300) * SECONDS_A_DAY // 2 + 10**9

    found = PopularityHistory(events).columns(asked_items, asked_times, [1, 7, 1000])

    expected = [
        [
            ((events.item_ids == item) & (times < t) & (times >= t - days * SECONDS_A_DAY)).sum()
            for days in (1, 7, 1000)
        ]
        for item, t in zip(asked_items, asked_times, strict=True)
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.log1p(expected), rtol=1e-6)
    assert np.min(np.max(expected, axis=0)) > 1


def test_a_window_ends_before_its_second_and_begins_exactly_so_many_days_before():
    events = interactions([0, 0, 0], [100, 100, 101])
    assert counts(events, events.item_ids, events.times) == [0, 0, 2]
    ends = [1000 + SECONDS_A_DAY, 1001 + SECONDS_A_DAY]
    assert counts(interactions([0], [1000]), [0, 0], ends) == [1, 0]


def test_the_future_does_not_change_the_past():
    events = interactions([0, 1, 0, 1, 0], [10, 20, 30, 40, 50])
    past = events.select(events.times < 40)
    items, times = events.item_ids[:4], events.times[:4]
    assert counts(events, items, times) == counts(past, items, times)


def test_a_catalogue_is_every_item_at_one_time():
    history = PopularityHistory(interactions([3, 3, 3, 1], [10, 20, 30, 40]))
    catalogue = history.catalogue(40, [1, 7])
    np.testing.assert_allclose(catalogue, np.log([[1], [1], [1], [4], [1]]).repeat(2, 1), rtol=1e-6)
    assert PopularityHistory(interactions([], [])).catalogue(5, [7]).tolist() == [[0.0]] * 5


def test_interactions_without_times_or_of_another_unit_are_refused():
    events = Interactions(np.zeros(1, int), np.zeros(1, int), None, None, 1, 1)
    with pytest.raises(ValueError, match="needs the time of each interaction"):
        PopularityHistory(events)
    with pytest.raises(ValueError, match="check the unit of the time column"):
        PopularityHistory(interactions([0, 1], [0, 2**61]))
