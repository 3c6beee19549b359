"""Laws of the batches: a function of (seed, epoch), exact on resume, the same on many ranks."""

from itertools import chain, combinations

import numpy as np
import pyarrow as pa
import pytest
import torch

from ftmamba.data.arrow_files import table_of_arrays, write_arrays
from ftmamba.data.batches import InteractionBatches, TableBatches


def arrays(n_rows):
    rows = np.arange(n_rows, dtype=np.int64)
    return {
        "user_ids": rows * 3,
        "popularity": np.stack([rows, -rows], axis=1).astype(np.float32),
    }


def row_lists(batches, epoch=0, **options):
    return [batch["rows"].tolist() for batch in batches.epoch(epoch, **options)]


@pytest.fixture(params=[1000, 1001, 1031])
def n_rows(request):
    return request.param


@pytest.fixture
def path(tmp_path, n_rows):
    write_arrays(tmp_path / "rows.arrow", arrays(n_rows))
    return tmp_path / "rows.arrow"


def test_an_epoch_holds_every_row_once_but_the_last_incomplete_batch(path, n_rows):
    batches = TableBatches(path, batch_size=32, seed=1, block_size=128)

    found = row_lists(batches)

    assert len(found) == len(batches) == batches.n_batches == n_rows // 32
    assert {len(rows) for rows in found} == {32}
    flat = list(chain.from_iterable(found))
    assert len(set(flat)) == len(flat) == n_rows // 32 * 32


def test_every_column_follows_its_row(path):
    for batch in InteractionBatches(path, batch_size=32, seed=1, block_size=128).epoch(2):
        rows = batch["rows"]
        assert torch.equal(batch["user_ids"], rows * 3)
        assert torch.equal(batch["popularity"], torch.stack([rows, -rows], dim=1).float())
        assert (batch["user_ids"].dtype, batch["popularity"].dtype) == (torch.int64, torch.float32)


def test_the_order_depends_on_seed_and_epoch_alone(path):
    def order(seed, epoch):
        return row_lists(TableBatches(path, batch_size=32, seed=seed, block_size=128), epoch)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_a_table_within_one_piece_is_shuffled_anew_in_every_epoch():
    batches = TableBatches(table_of_arrays(arrays(100)), batch_size=10, seed=0)
    orders = [row_lists(batches, epoch) for epoch in range(5)]

    assert all(a != b for a, b in combinations(orders, 2))
    assert orders[0] != np.arange(100).reshape(10, 10).tolist()


def test_starting_at_a_batch_gives_the_rest_of_the_same_epoch(path):
    batches = TableBatches(path, batch_size=32, seed=1, block_size=128)
    whole = row_lists(batches, 3)

    for start in range(len(whole) + 1):
        assert row_lists(batches, 3, start=start) == whole[start:]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_each_global_batch_of_one_process(path, n_ranks):
    one = row_lists(TableBatches(path, batch_size=24 * n_ranks, seed=5, block_size=100))
    ranks = [
        row_lists(
            TableBatches(path, batch_size=24, seed=5, rank=rank, n_ranks=n_ranks, block_size=100)
        )
        for rank in range(n_ranks)
    ]

    assert len(one) > 3
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == one


def test_a_table_smaller_than_a_batch_gives_one_smaller_batch_shared_out(tmp_path):
    table = table_of_arrays(arrays(7))

    assert sorted(row_lists(TableBatches(table, batch_size=32, seed=0))[0]) == list(range(7))
    parts = [
        row_lists(TableBatches(table, batch_size=32, seed=0, rank=rank, n_ranks=2))
        for rank in range(2)
    ]
    assert [[len(rows) for rows in part] for part in parts] == [[3], [3]]
    assert not set(parts[0][0]) & set(parts[1][0])


def test_a_block_mixes_rows_from_all_over_the_table():
    batches = TableBatches(table_of_arrays(arrays(4096)), batch_size=64, seed=0, block_size=256)

    spans = [np.ptp(rows) for rows in row_lists(batches)]

    assert min(spans) > 2048


def test_shuffling_has_no_favourite_place():
    table = table_of_arrays(arrays(64))
    places = np.zeros((64, 64))
    for seed in range(400):
        order = row_lists(TableBatches(table, batch_size=64, seed=seed, block_size=64))[0]
        places[order, np.arange(64)] += 1

    # 400 uniform orders: 6.25 a cell; the largest of 4,096 Poisson counts is about 16.
    assert places.max() < 22
    assert places.sum() == 400 * 64


def test_chunks_of_the_file_do_not_matter():
    table = table_of_arrays(arrays(300))
    chunked = table.slice(0, 7)
    for start, stop in ((7, 130), (130, 131), (131, 300)):
        chunked = pa.concat_tables([chunked, table.slice(start, stop - start)])
    assert chunked.column(0).num_chunks == 4

    first, second = (
        TableBatches(t, batch_size=16, seed=2, block_size=48) for t in (table, chunked)
    )

    for a, b in zip(first.epoch(0), second.epoch(0), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ValueError, match="2 training rows cannot be shared out among 3 processes"):
        TableBatches(table_of_arrays(arrays(2)), batch_size=4, seed=0, n_ranks=3)


def test_a_rank_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        TableBatches(table_of_arrays(arrays(8)), batch_size=4, seed=0, rank=2, n_ranks=2)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_named(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"file '.*rows\.arrow' is damaged"):
        TableBatches(path, batch_size=4, seed=0)


def test_a_file_that_is_no_arrow_stream_is_named(tmp_path):
    (tmp_path / "rows.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"file '.*rows\.arrow' is damaged"):
        TableBatches(tmp_path / "rows.arrow", batch_size=4, seed=0)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_stretch_is_neighbouring_rows_and_left_over_rows_change(path, n_rows, n_ranks):
    ranks = [
        TableBatches(path, batch_size=32, seed=1, rank=rank, n_ranks=n_ranks, in_stretches=True)
        for rank in range(n_ranks)
    ]
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
    if n_rows % size > 8:
        assert len({min(order) for order in firsts}) > 1
