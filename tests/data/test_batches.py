"""Laws of the batches: a function of (seed, epoch), exact on resume, the same on many ranks.

Rows are windows with one target, sequences windows with all their targets.
"""

import dataclasses
from collections import Counter
from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ftmamba.data.arrow_files import write_arrays
from ftmamba.data.batches import SequenceBatches, Share, TableBatches, make_batches
from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions
from modeling_ftmamba.configuration_ftmamba import Column


def row_lists(batches, epoch=0, **options):
    return [batch["rows"].tolist() for batch in batches.epoch(epoch, **options)]


@pytest.fixture
def table_of(tmp_path):
    """Return a function that opens a table of so many rows."""

    def write(n_rows, batch_size=32, seed=1, rank=0, n_ranks=1, **options):
        rows = np.arange(n_rows, dtype=np.int64)
        pairs = np.stack([rows, -rows], axis=1).astype(np.float32)
        write_arrays(tmp_path / "rows.arrow", {"user_ids": rows * 3, "pairs": pairs})
        share = Share(batch_size, seed, rank, n_ranks)
        return TableBatches(tmp_path / "rows.arrow", share, **options)

    return write


@pytest.mark.parametrize("n_rows", [1000, 1031])
def test_an_epoch_holds_every_row_once_but_the_last_incomplete_batch(table_of, n_rows):
    batches = table_of(n_rows, block_size=128)
    found = []
    for batch in batches.epoch(2):
        rows = batch["rows"]
        found.append(rows.tolist())
        assert torch.equal(batch["user_ids"], rows * 3)
        assert torch.equal(batch["pairs"], torch.stack([rows, -rows], dim=1).float())
        assert (batch["user_ids"].dtype, batch["pairs"].dtype) == (torch.int64, torch.float32)
    assert len(found) == batches.n_batches == n_rows // 32
    assert {len(rows) for rows in found} == {32}
    assert len(set(chain(*found))) == n_rows // 32 * 32


@pytest.mark.parametrize("n_rows", [100, 1031])
def test_the_order_depends_on_seed_and_epoch_alone_and_resumes_anywhere(table_of, n_rows):
    batches = table_of(n_rows, block_size=1600)
    orders = [row_lists(batches, epoch) for epoch in range(5)]
    assert all(a != b for a, b in combinations(orders, 2))
    assert list(chain(*orders[0])) != sorted(chain(*orders[0]))
    assert orders[1] == row_lists(table_of(n_rows, block_size=1600), 1)
    assert orders[1] != row_lists(table_of(n_rows, block_size=1600, seed=2), 1)
    blocks = table_of(n_rows, block_size=128)
    whole = row_lists(blocks)
    for start in range(len(whole) + 1):
        assert row_lists(blocks, start=start) == whole[start:]


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize("n_rows", [1000, 1031])
def test_ranks_share_each_global_batch_of_one_process(table_of, n_rows, n_ranks):
    one = row_lists(table_of(n_rows, 24 * n_ranks, block_size=100))
    ranks = [
        row_lists(table_of(n_rows, 24, rank=rank, n_ranks=n_ranks, block_size=100))
        for rank in range(n_ranks)
    ]
    assert len(one) > 3
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == one


def test_a_table_smaller_than_a_batch_gives_one_smaller_batch_shared_out(table_of):
    assert sorted(row_lists(table_of(7))[0]) == list(range(7))
    parts = [row_lists(table_of(7, rank=rank, n_ranks=2)) for rank in range(2)]
    assert [[len(rows) for rows in part] for part in parts] == [[3], [3]]
    assert not set(parts[0][0]) & set(parts[1][0])
    assert [len(rows) for rows in row_lists(table_of(2, rank=1, n_ranks=2))] == [1]


def test_shuffling_mixes_the_whole_table_and_favours_no_position(table_of):
    assert min(np.ptp(rows) for rows in row_lists(table_of(4096, 64, block_size=256))) > 2048

    counts = np.zeros((64, 64))
    for seed in range(400):
        counts[row_lists(table_of(64, 64, seed, block_size=64))[0], np.arange(64)] += 1
    # 400 uniform orders: 6.25 a cell; the largest of 4,096 Poisson counts is about 16.
    assert counts.max() < 22
    assert counts.sum() == 400 * 64


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("n_rows", [1000, 1031])
def test_a_stretch_is_neighbouring_rows_and_left_over_rows_change(table_of, n_rows, n_ranks):
    ranks = [table_of(n_rows, rank=r, n_ranks=n_ranks, in_stretches=True) for r in range(n_ranks)]
    size = 32 * n_ranks
    firsts = []
    for epoch in range(6):
        batches = list(zip(*(row_lists(rank, epoch) for rank in ranks), strict=True))
        assert len(batches) == n_rows // size
        stretches = [sorted(chain.from_iterable(batch)) for batch in batches]
        assert all(rows == list(range(rows[0], rows[0] + size)) for rows in stretches)
        assert len({row for rows in stretches for row in rows}) == size * len(batches)
        assert list(chain.from_iterable(batches[0])) != stretches[0]
        firsts.append([rows[0] for rows in stretches])
        assert row_lists(ranks[0], epoch, start=3) == row_lists(ranks[0], epoch)[3:]
    assert len({tuple(order) for order in firsts}) == 6
    n_left = n_rows % size
    assert {row < 0 or row > n_rows - size for order in firsts for row in order} == {False}
    if n_ranks == 1:  # every number of left over rows ahead of the first stretch occurs
        orders = (chain.from_iterable(row_lists(ranks[0], epoch)) for epoch in range(100))
        assert {min(order) for order in orders} == set(range(n_left + 1))


COUNTS = [0, 1, 2, 3, 10, 11, 12, 15, 16, 20, 21, 22, 37, 64, 5, 9, 1, 30]
COLUMN = Column("history", "history", max_length=10, event_features=("gap", "price"))


def drawn_interactions(*, timed=True, ordered=True):
    """User u has the events of steps 0 to `COUNTS[u]`, of items 100 u + step; users are mixed.

    Two steps are 10 seconds apart, but every even one is of the same second as the one before.
    """
    users = np.repeat(np.arange(len(COUNTS)), COUNTS)
    steps = np.concatenate([np.arange(count) for count in COUNTS])
    order = np.lexsort((np.random.default_rng(5).random(len(users)), steps))
    users, steps = users[order], steps[order]
    return Interactions(
        users,
        users * 100 + steps,
        (steps + 1) // 2 * 10 if timed else None,
        None,
        len(COUNTS),
        100 * len(COUNTS),
        {"price": (1000 * users + steps).astype(np.float32)},
        row_order=ordered,
    )


def data_of(interactions, tmp_path, column=COLUMN):
    columns = {"user_ids": interactions.user_ids, "item_ids": interactions.item_ids}
    if interactions.times is not None:
        columns["times"] = interactions.times
    write_arrays(tmp_path / "interactions.arrow", columns)
    return SimpleNamespace(
        interactions=tmp_path / "interactions.arrow",
        history_column=column,
        histories=None if column is None else histories_of(interactions),
    )


@pytest.fixture
def data(tmp_path):
    return data_of(drawn_interactions(), tmp_path)


def batches_of(data, **options):
    return make_batches(data, **{"sequences": "every", "batch_size": 4, "seed": 1, **options})


def equal(first, second):
    return all(
        a is b is None or torch.equal(a, b)
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def windows_in(batches):
    """Return of each window its user, the items of its history and of its targets by their slot."""
    found = []
    for batch in batches:
        for window, (user, n) in enumerate(zip(batch.user_ids, batch.lengths, strict=True)):
            mine = batch.windows == window
            targets = dict(
                zip(batch.slots[mine].tolist(), batch.targets[mine].tolist(), strict=True)
            )
            found.append((int(user), batch.history_ids[window, :n].tolist(), targets))
    return found


@pytest.mark.parametrize("timed", [True, False])
def test_a_row_is_a_window_with_one_target_and_what_came_before_it(tmp_path, timed):
    events = drawn_interactions(timed=timed)
    n_rows = n_shorter = 0
    for batch in batches_of(data_of(events, tmp_path), sequences="", batch_size=16).epoch(0):
        assert torch.equal(batch.windows, torch.arange(16))
        assert torch.equal(batch.slots, batch.lengths)
        for window, row in enumerate(batch.rows.tolist()):
            user, item = events.user_ids[row], events.item_ids[row]
            step = item % 100
            # The event before it may be of the same second, and is then left out.
            n_before = step - (step % 2 == 0 and step > 0) if timed else step
            first = max(0, n_before - 10)
            expected = [user * 100 + earlier for earlier in range(first, n_before)]
            assert (batch.user_ids[window], batch.targets[window]) == (user, item)
            assert batch.history_ids[window, : batch.lengths[window]].tolist() == expected
            assert batch.times is None or batch.times[window] == events.times[row]
            n_rows, n_shorter = n_rows + 1, n_shorter + (n_before < step)
    assert n_rows == len(events) // 16 * 16
    assert (n_shorter > 50) == timed


@pytest.mark.parametrize("timed", [True, False])
def test_a_share_of_the_rows_has_its_whole_history_hidden(tmp_path, timed):
    data = data_of(drawn_interactions(timed=timed), tmp_path)
    whole, hidden = (
        batches_of(data, sequences="", batch_size=16, history_dropout=share) for share in (0, 0.3)
    )
    n_hidden, found = 0, []
    for epoch in range(4):
        for full, some in zip(whole.epoch(epoch), hidden.epoch(epoch), strict=True):
            assert torch.equal(full.rows, some.rows)
            is_hidden = (some.lengths == 0) & (full.lengths > 0)
            assert torch.equal(some.lengths[~is_hidden], full.lengths[~is_hidden])
            assert torch.equal(some.slots, some.lengths)
            n_hidden += int(is_hidden.sum())
            found += [full.rows[full.lengths > 0]]
    assert 0.25 < n_hidden / len(torch.cat(found)) < 0.35
    late = list(hidden.epoch(2))[3:]
    assert all(torch.equal(a.lengths, b.lengths) for a, b in zip(
        hidden.epoch(2, start=3), late, strict=True))  # fmt: skip
    assert any(not torch.equal(a.lengths, b.lengths) for a, b in zip(
        hidden.epoch(0), hidden.epoch(1), strict=True))  # fmt: skip


def test_without_a_history_a_row_is_user_and_item_alone(tmp_path):
    events = drawn_interactions()
    batches = batches_of(data_of(events, tmp_path, None), sequences="", batch_size=16)
    for batch in batches.epoch(0):
        assert batch.history_ids.shape == (16, 0)
        assert not batch.lengths.any()
        assert not batch.slots.any()
        assert batch.history_times is batch.event_features is None
        np.testing.assert_array_equal(batch.targets, events.item_ids[batch.rows])


@pytest.mark.parametrize("epoch", range(3))
def test_every_event_is_a_target_once_an_epoch(data, epoch):
    windows = windows_in(batches_of(data).epoch(epoch))
    found = Counter(item for *_, targets in windows for item in targets.values())
    assert found == Counter(100 * u + t for u, n in enumerate(COUNTS) for t in range(n) if n > 1)


def events_before_the_target(batches, epoch):
    """Return by number of the target's interaction the items that it is predicted from."""
    found = {}
    for batch in batches.epoch(epoch):
        for window, slot, row in zip(
            batch.windows.tolist(), batch.slots.tolist(), batch.rows.tolist(), strict=True
        ):
            found[row] = batch.history_ids[window, :slot].tolist()
    return found


@pytest.mark.parametrize("sequences", ["", "every"])
def test_a_set_is_read_in_another_order_each_epoch_and_a_target_never_from_itself(
    tmp_path, sequences
):
    events = drawn_interactions(timed=False, ordered=False)
    data = data_of(events, tmp_path, dataclasses.replace(COLUMN, event_features=()))
    batches = batches_of(data, sequences=sequences, batch_size=1)
    n_before_of_13 = Counter()
    for epoch in range(5):
        drawn = histories_of(events).reordered(np.random.default_rng((1, epoch, 0, 1)))
        found = events_before_the_target(batches, epoch)
        assert found.keys() >= {r for r, u in enumerate(events.user_ids) if COUNTS[u] > 1}
        for row, items in found.items():
            user, item = events.user_ids[row], events.item_ids[row]
            order = [i for i in drawn.items.item_ids.tolist() if i // 100 == user]
            before = order[: order.index(item)]
            n_read = min(len(before), 10) if not sequences else len(items)
            assert items == before[len(before) - n_read :]
            assert len(items) > 0 or not before
        n_before_of_13[tuple(found[int(np.flatnonzero(events.user_ids == 13)[0])])] += 1
        assert found == events_before_the_target(batches_of(
            data, sequences=sequences, batch_size=1), epoch)  # fmt: skip
    assert len(n_before_of_13) > 3
    start = batches.n_batches // 2
    assert all(map(equal, batches.epoch(3, start=start), list(batches.epoch(3))[start:]))


@pytest.mark.parametrize("sequences", ["newest", "every"])
def test_a_target_is_the_event_after_those_ahead_of_it(data, sequences):
    for user, items, targets in windows_in(batches_of(data, sequences=sequences).epoch(0)):
        assert items == list(range(items[0], items[0] + len(items)))
        assert items[0] // 100 == user
        assert 1 <= len(items) <= 10
        begins = items[0] % 100 == 0
        assert targets == {s: items[0] + s for s in range(0 if begins else 1, len(items) + 1)}


def test_the_newest_window_ends_with_the_last_event(data):
    windows = windows_in(batches_of(data, sequences="newest").epoch(0))
    assert {user: max(targets.values()) for user, _, targets in windows} == {
        u: 100 * u + count - 1 for u, count in enumerate(COUNTS) if count > 1
    }
    assert all(len(items) == min(10, COUNTS[user] - 1) for user, items, _ in windows)


def test_cuts_move_from_epoch_to_epoch_and_their_number_does_not(data):
    batches = batches_of(data)
    cuts = [
        {items[0] for user, items, _ in windows_in(batches.epoch(epoch)) if user == 13}
        for epoch in range(8)
    ]
    assert len(set(map(frozenset, cuts))) > 3
    for epoch in range(8):
        epochs_batches = list(batches.epoch(epoch))
        assert len(epochs_batches) == batches.n_batches
        assert sum(len(batch.user_ids) for batch in epochs_batches) == batches.n_windows


@pytest.mark.parametrize("sequences", ["", "every"])
def test_what_stands_beside_events_and_targets_is_theirs(data, sequences):
    events = drawn_interactions()
    time_of, price_of = (
        dict(zip(events.item_ids.tolist(), values.tolist(), strict=True))
        for values in (events.times, events.context["price"])
    )
    n_padding = 0
    for batch in batches_of(data, sequences=sequences).epoch(0):
        inside = torch.arange(batch.history_ids.shape[1]) < batch.lengths[:, None]
        ids = batch.history_ids[inside].tolist()
        assert batch.history_times[inside].tolist() == [time_of[item] for item in ids]
        gaps = [np.log1p(time_of[item] - time_of[item - 1]) if item % 100 else 0.0 for item in ids]
        np.testing.assert_allclose(batch.event_features[inside][:, 0], gaps, rtol=1e-6)
        assert batch.event_features[inside][:, 1].tolist() == [price_of[item] for item in ids]
        for padded in (batch.history_ids, batch.history_times, batch.event_features):
            assert not padded[~inside].any()
        n_padding += int((~inside).sum())
        assert batch.times.tolist() == [time_of[item] for item in batch.targets.tolist()]
        np.testing.assert_array_equal(events.item_ids[batch.rows], batch.targets)
    assert n_padding > 0


def test_a_history_without_times_or_features_has_none(tmp_path):
    column = dataclasses.replace(COLUMN, event_features=())
    batch = next(batches_of(data_of(drawn_interactions(timed=False), tmp_path, column)).epoch(0))
    assert batch.times is batch.history_times is batch.event_features is None


@pytest.mark.parametrize("sequences", ["", "every"])
def test_an_epoch_of_windows_repeats_exactly_and_resumes_where_it_stopped(data, sequences):
    whole = list(batches_of(data, sequences=sequences).epoch(3))
    assert len(whole) > 4
    for start in (0, 1, 4, len(whole)):
        rest = list(batches_of(data, sequences=sequences).epoch(3, start=start))
        assert len(rest) == len(whole) - start
        assert all(map(equal, rest, whole[start:]))
    for other in ({"seed": 2}, {"epoch": 4}):
        epoch = other.pop("epoch", 3)
        first = next(batches_of(data, sequences=sequences, **other).epoch(epoch))
        assert not torch.equal(first.rows[:2], whole[0].rows[:2])


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_the_windows_of_one_process_disjointly_and_equally(data, n_ranks):
    one = batches_of(data, batch_size=4 * n_ranks)
    many = [batches_of(data, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    shares = [list(each.epoch(5)) for each in many]
    assert {len(share) for share in shares} == {many[0].n_batches}
    found = []
    for parts in zip(*shares, strict=True):
        assert len({len(part.user_ids) for part in parts}) == 1
        found += map(str, windows_in(parts))
    assert len(set(found)) == len(found) == one.n_windows // n_ranks * n_ranks
    assert set(found) <= set(map(str, windows_in(one.epoch(5))))


@pytest.mark.parametrize("smallest", [1, 2])
def test_a_last_batch_of_one_window_is_dropped_where_it_has_no_negatives(data, smallest):
    n_windows = batches_of(data, sequences="newest").n_windows
    seen = set()
    for epoch in range(20):
        batches = batches_of(data, sequences="newest", batch_size=n_windows - 1, smallest=smallest)
        found = list(batches.epoch(epoch))
        assert len(found) == batches.n_batches == 3 - smallest
        assert sum(len(one.user_ids) for one in found) == n_windows - smallest + 1
        seen |= set(found[0].user_ids.tolist())
    assert len(seen) == n_windows


def test_batches_hold_windows_of_like_length():
    counts = np.random.default_rng(0).integers(2, 101, 400)
    users = np.repeat(np.arange(400), counts)
    histories = histories_of(Interactions(users, users, None, None, 400, 400))
    column = Column("history", "history", max_length=100)
    n_slots = n_inputs = 0
    batches = SequenceBatches(histories, column, Share(16, seed=1), windows="every")
    for batch in batches.epoch(0):
        n_slots += batch.history_ids.numel()
        n_inputs += int(batch.lengths.sum())
    assert n_inputs == counts.sum() - 400
    assert n_slots < 1.2 * n_inputs  # in order of chance 1.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequences": "newst"}, "got 'newst'; did you mean 'newest'"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"n_ranks": 0}, "n_ranks must be >= 1, got 0"),
        ({"rank": 2, "n_ranks": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": -1, "n_ranks": 2}, r"rank must be in \[0, 2\), got -1"),
        ({"rank": 1}, r"rank must be in \[0, 1\), got 1"),
        ({"n_ranks": 1000}, r"cannot be shared out among 1000 processes"),
        ({"smallest": 10_000}, r"in_batch takes negatives from the batch, and there are \d+"),
    ],
)
def test_wrong_options_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        batches_of(data, **options)
    if "sequences" not in options:
        with pytest.raises(ValueError, match=message):
            batches_of(data, sequences="", **options)


def test_sequences_need_a_history(tmp_path):
    with pytest.raises(ValueError, match=r"training\.sequences needs a column of kind 'history'"):
        batches_of(data_of(drawn_interactions(), tmp_path, None))
