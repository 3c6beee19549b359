"""Arrays as Arrow files: written once, memory-mapped, read row by row, kept in a cache folder.

A row is a record; several slots of it are packed in a fixed-size list.

Shapes: R rows of a table, W slots, B rows read.
"""

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

Array = NDArray[np.generic]
Stretch = tuple[int, int]
"""First row, and the row after the last."""

_ROWS_HASHED_AT_ONCE = 1 << 18


def cache_folder(chosen: str | Path | None = None) -> Path:
    """Return the chosen folder, else that of `FTMAMBA_CACHE`, else `~/.cache/ftmamba`."""
    chosen = chosen or os.environ.get("FTMAMBA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "ftmamba"


def place_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all: fill a temporary sibling, then rename it.

    If another process made the same folder meanwhile, theirs is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays of R rows, (R,) or (R, W), as an Arrow stream that can be memory-mapped.

    The file is also one that `datasets.Dataset.from_file` reads.
    """
    table = table_of_arrays(arrays)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def table_of_arrays(arrays: Mapping[str, Array]) -> pa.Table:
    """Return arrays of R rows, (R,) or (R, W), as an Arrow table."""

    def packed(array: Array) -> pa.Array:
        if array.ndim == 1:
            return pa.array(array)
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])

    return pa.table({name: packed(array) for name, array in arrays.items()})


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the named columns of a file, by default all, as tensors of their own memory.

    Raises:
        ValueError: the file is cut off or no Arrow stream.
    """
    # Concatenating copies, so that the tensors are writable and outlive the file.
    chunks = TableRows(path).chunks
    return {name: torch.from_numpy(np.concatenate(chunks[name])) for name in names or chunks}


class TableRows:
    """A table whose columns are numbers or fixed-size lists of numbers, read by row number.

    Attributes:
        n_rows: rows of the table.
        chunks: of each column, (R,) or (R, W) in all, as views of the table's memory.
    """

    def __init__(self, source: str | Path | pa.Table) -> None:
        """Open an Arrow stream file, which is memory-mapped, or take a table.

        Raises:
            ValueError: the file is cut off or no Arrow stream.
        """
        self._mapping: mmap.mmap | None = None
        table = source if isinstance(source, pa.Table) else self._map(Path(source))
        self.n_rows: int = table.num_rows
        self.chunks: dict[str, list[Array]] = {
            name: [_unpacked(chunk) for chunk in table.column(name).chunks]
            for name in table.column_names
        }
        self._ends = {
            name: np.cumsum([len(chunk) for chunk in chunks])
            for name, chunks in self.chunks.items()
        }

    def take(self, rows_B: NDArray[np.int64]) -> dict[str, Array]:
        """Return the rows of every column, in the order given and in memory of their own."""
        return {name: self._take(name, rows_B) for name in self.chunks}

    def will_need(self, stretches: Iterable[Stretch]) -> None:
        """Ask the system to read stretches of rows from the disk; return before it has.

        Reading on demand fetches page after page, and waits for each.
        """
        if self._mapping is None or not hasattr(self._mapping, "madvise"):
            return
        base = np.frombuffer(self._mapping, np.uint8).ctypes.data
        for start, stop in stretches:
            for name in self.chunks:
                for view in self._views(name, start, stop):
                    first = (view.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
                    n_bytes = view.ctypes.data + view.nbytes - base - first
                    self._mapping.madvise(mmap.MADV_WILLNEED, first, n_bytes)

    def _map(self, path: Path) -> pa.Table:
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return pa.ipc.open_stream(pa.py_buffer(self._mapping)).read_all()
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:  # Arrow's errors are ValueErrors
            raise ValueError(
                f"file '{path}' is damaged: {error}; delete its folder and encode again"
            ) from error

    def _take(self, name: str, rows_B: NDArray[np.int64]) -> Array:
        chunks, ends = self.chunks[name], self._ends[name]
        if len(chunks) == 1:
            return np.take(chunks[0], rows_B, axis=0)
        # Sorted by chunk, so that each chunk is visited once however many there are.
        chunk_B = np.searchsorted(ends, rows_B, side="right")
        splits = np.cumsum(np.bincount(chunk_B, minlength=len(chunks)))[:-1]
        values = np.empty((len(rows_B), *chunks[0].shape[1:]), chunks[0].dtype)
        index_by_chunk = np.split(np.argsort(chunk_B, kind="stable"), splits)
        for chunk, end, index in zip(chunks, ends, index_by_chunk, strict=True):
            values[index] = chunk[rows_B[index] - (end - len(chunk))]
        return values

    def _views(self, name: str, start: int, stop: int) -> Iterable[Array]:
        """Yield the parts of a stretch of rows, chunk by chunk."""
        chunk = int(np.searchsorted(self._ends[name], start, side="right"))
        while start < stop:
            end = int(self._ends[name][chunk])
            begin = end - len(self.chunks[name][chunk])
            yield self.chunks[name][chunk][start - begin : min(stop, end) - begin]
            start, chunk = end, chunk + 1


def _unpacked(chunk: pa.Array) -> Array:
    if not pa.types.is_fixed_size_list(chunk.type):
        return chunk.to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]
    return chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, chunk.type.list_size)  # type: ignore[no-any-return]


def content_hash(table: pa.Table) -> bytes:
    """Return a digest of the column names, types and values; chunks and metadata do not count."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    digest = hashlib.blake2b(plain.schema.serialize(), digest_size=16)
    for batch in plain.to_batches(max_chunksize=_ROWS_HASHED_AT_ONCE):
        digest.update(batch.serialize())
    return digest.digest()
