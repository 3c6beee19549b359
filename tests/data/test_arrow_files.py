"""Rows of a table by number, whatever its chunks, and what is asked of the disk beforehand."""

import mmap

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.arrow_files import TableRows, table_of_arrays, write_arrays
from ftmamba.data.batches import TableBatches


def arrays(n_rows):
    rows = np.arange(n_rows, dtype=np.int64)
    return {"ids": rows * 3, "pairs": np.stack([rows, -rows], axis=1).astype(np.float32)}


def in_chunks(table, *bounds):
    return pa.concat_tables(
        table.slice(a, b - a) for a, b in zip((0, *bounds), (*bounds, len(table)), strict=True)
    )


@pytest.mark.parametrize("bounds", [(), (7,), (7, 130, 131), (1, 1, 299)])
@pytest.mark.parametrize("n", [0, 1, 64])
def test_rows_are_taken_in_any_order_from_any_chunks(bounds, n):
    expected = arrays(300)
    rows = TableRows(in_chunks(table_of_arrays(expected), *bounds))
    numbers = np.random.default_rng(0).integers(0, 300, n)
    numbers[:1] = 299
    taken = rows.take(numbers)
    assert rows.n_rows == 300
    assert list(taken) == ["ids", "pairs"]
    for name, array in taken.items():
        np.testing.assert_array_equal(array, expected[name][numbers])
        assert array.dtype == expected[name].dtype
        assert array.flags.writeable


def test_a_file_and_the_table_in_it_have_the_same_rows(tmp_path):
    write_arrays(tmp_path / "rows.arrow", arrays(50))
    numbers = np.array([49, 0, 7])
    taken = TableRows(tmp_path / "rows.arrow").take(numbers)
    np.testing.assert_array_equal(taken["pairs"], arrays(50)["pairs"][numbers])


@pytest.fixture
def asked(monkeypatch):
    """The byte ranges, from the first of the file, that are asked for."""
    ranges = []

    class Recorded(mmap.mmap):
        def madvise(self, advice, start, length):
            assert advice == mmap.MADV_WILLNEED
            super().madvise(advice, start, length)
            ranges.append((start, start + length))

    monkeypatch.setattr("ftmamba.data.arrow_files.mmap.mmap", Recorded)
    return ranges


def test_the_bytes_of_the_rows_are_fetched_and_few_others(tmp_path, asked):
    path = tmp_path / "rows.arrow"
    # Numbers that can be found again in the file.
    ids = np.random.default_rng(0).integers(1, 2**62, 50_000)
    write_arrays(path, {"ids": ids})
    TableRows(path).will_need([(10_000, 12_000), (30_000, 30_001)])
    content, wanted = path.read_bytes(), ids.tobytes()
    place = content.index(wanted)
    expected = [(place + 8 * a, place + 8 * b) for a, b in ((10_000, 12_000), (30_000, 30_001))]
    assert len(asked) == 2
    for (start, stop), (first, last) in zip(asked, expected, strict=True):
        assert stop == last
        assert first - mmap.PAGESIZE < start <= first


def test_every_block_is_asked_for_before_its_first_batch_and_one_ahead(tmp_path, asked):
    write_arrays(tmp_path / "rows.arrow", {"ids": np.arange(160_000)})
    batches = TableBatches(tmp_path / "rows.arrow", batch_size=1600, seed=0, block_size=16_000)
    epoch = batches.epoch(0)
    counts = []
    for _ in range(30):
        next(epoch)
        counts.append(len(asked))
    # Blocks of ten batches and 16 stretches: the second is asked for before the first is used.
    assert counts == [32] * 10 + [48] * 10 + [64] * 10


def test_rows_skipped_on_resuming_are_not_fetched(tmp_path, asked):
    write_arrays(tmp_path / "rows.arrow", {"ids": np.arange(160_000)})
    batches = TableBatches(tmp_path / "rows.arrow", batch_size=1600, seed=0, block_size=16_000)
    next(batches.epoch(0, start=95))
    assert len(asked) == 16


def test_a_table_in_memory_needs_no_fetching(asked):
    TableRows(table_of_arrays(arrays(10))).will_need([(0, 10)])
    assert asked == []


def test_a_system_without_advice_reads_all_the_same(tmp_path, monkeypatch):
    class Plain(mmap.mmap):
        madvise = property()

    monkeypatch.setattr("ftmamba.data.arrow_files.mmap.mmap", Plain)
    write_arrays(tmp_path / "rows.arrow", arrays(100))
    batches = TableBatches(tmp_path / "rows.arrow", batch_size=10, seed=0)
    assert sum(len(batch["ids"]) for batch in batches.epoch(0)) == 100
