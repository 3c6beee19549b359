"""Rows of a table by number, and what is asked of the disk beforehand."""

import mmap

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.arrow_files import TableRows, content_hash, write_arrays
from ftmamba.data.batches import Share, TableBatches


def arrays(n_rows):
    rows = np.arange(n_rows, dtype=np.int64)
    return {"ids": rows * 3, "pairs": np.stack([rows, -rows], axis=1).astype(np.float32)}


def test_rows_are_read_in_any_order_into_memory_of_their_own(tmp_path):
    expected = arrays(300)
    write_arrays(tmp_path / "rows.arrow", expected)
    rows = TableRows(tmp_path / "rows.arrow")
    assert rows.n_rows == 300
    for n in (0, 1, 64):
        numbers = np.random.default_rng(0).integers(0, 300, n)
        found = rows.take(numbers)
        assert list(found) == ["ids", "pairs"]
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name][numbers])
            assert array.dtype == expected[name].dtype
            assert array.flags.writeable


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
    start_of_ids = path.read_bytes().index(ids.tobytes())
    assert len(asked) == 2
    for (start, stop), rows in zip(asked, ((10_000, 12_000), (30_000, 30_001)), strict=True):
        first, last = (start_of_ids + 8 * row for row in rows)
        assert stop == last
        assert first - mmap.PAGESIZE < start <= first


def test_every_block_is_asked_for_one_ahead_and_none_that_resuming_skips(tmp_path, asked):
    write_arrays(tmp_path / "rows.arrow", {"ids": np.arange(160_000)})
    batches = TableBatches(tmp_path / "rows.arrow", Share(1600, seed=0), block_size=16_000)
    epoch = batches.epoch(0)
    counts = []
    for _ in range(30):
        next(epoch)
        counts.append(len(asked))
    # Blocks of ten batches and 16 stretches: the second is asked for before the first is used.
    assert counts == [32] * 10 + [48] * 10 + [64] * 10
    next(batches.epoch(0, start=95))
    assert len(asked) == 64 + 16


def test_a_system_without_advice_reads_all_the_same(tmp_path, monkeypatch):
    class Plain(mmap.mmap):
        madvise = property()

    monkeypatch.setattr("ftmamba.data.arrow_files.mmap.mmap", Plain)
    write_arrays(tmp_path / "rows.arrow", arrays(100))
    batches = TableBatches(tmp_path / "rows.arrow", Share(10, seed=0))
    assert sum(len(batch["ids"]) for batch in batches.epoch(0)) == 100


@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "rows.arrow"
    write_arrays(path, arrays(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"file '.*rows\.arrow' is damaged"):
        TableRows(path)


def test_a_hash_is_of_names_types_and_values_alone():
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    same = content_hash(chunked.replace_schema_metadata({"read": "elsewhere"}))
    others = [
        table.rename_columns(["a", "c"]),
        table.set_column(0, "a", pa.array([1, 2, 3], pa.int32())),
        table.set_column(1, "b", pa.array(["x", "", "z"])),
    ]
    assert same == content_hash(table)
    assert len({content_hash(one) for one in (table, *others)}) == 4


def test_a_digest_is_of_the_rows_alone_and_of_all_their_values():
    long = pa.table({"key": [f"i{row}" for row in range(26)]})
    assert content_hash(long.slice(0, 25)) == content_hash(pa.table({"key": long["key"][:25]}))
    assert content_hash(long.slice(0, 25)) != content_hash(long.slice(1, 25))
    few = pa.table({"key": [f"i{row}" for row in range(25)]})
    assert content_hash(long.slice(0, 25)) == content_hash(few)
    xy, xz = (pa.table({"c": pa.array(["x", one]).dictionary_encode()}) for one in "yz")
    assert content_hash(xy) != content_hash(xz)
