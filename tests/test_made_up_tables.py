"""The made-up tables have the answer they promise."""

import numpy as np
import pytest

from tests.made_up_tables import checkerboard, clusters


def test_the_checkerboard_withholds_exactly_its_diagonal():
    events = checkerboard(12, 3).interactions

    pairs = set(zip(events.user_ids.tolist(), events.item_ids.tolist(), strict=True))

    assert pairs == {(u, i) for u in range(12) for i in range(12) if u % 3 == i % 3 and u != i}
    assert len(events) == len(pairs)


def test_noiseless_clusters_follow_the_taste():
    tables = clusters(40, 21, 4, n_events=300, noise=0)
    tastes = tables.users.column("taste").to_pylist()
    tags = tables.items.column("tags").to_pylist()

    events = tables.interactions

    for user, item in zip(events.user_ids, events.item_ids, strict=True):
        assert tags[item].startswith(f"cluster {tastes[user].removeprefix('taste ')}|")


@pytest.mark.parametrize("make", [checkerboard, clusters])
def test_a_seed_names_the_tables(make):
    first, same, other = (make(seed=seed) for seed in (3, 3, 4))

    assert first.users.equals(same.users)
    assert first.items.equals(same.items)
    np.testing.assert_array_equal(first.interactions.user_ids, same.interactions.user_ids)
    assert not np.array_equal(first.interactions.user_ids, other.interactions.user_ids)
    assert (np.diff(first.interactions.times) > 0).all()
