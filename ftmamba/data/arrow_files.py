"""Arrays as Arrow files: written once, memory-mapped, read row by row, kept in a cache folder.

A row is a record; several slots of it are packed in a fixed-size list.

Shapes: R rows of a table, W slots, B rows read.
"""

import hashlib
import io
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

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
    temporary = target.with_name(f".{target.name}-{uuid4().hex}")
    try:
        temporary.mkdir()
        fill(temporary)
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

    def packed(array: Array) -> pa.Array:
        if array.ndim == 1:
            return pa.array(array)
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])

    table = pa.table({name: packed(array) for name, array in arrays.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the named columns of a file, by default all, as tensors of their own memory.

    Raises:
        ValueError: the file is cut off or no Arrow stream.
    """
    # Copied, so that the tensors are writable and outlive the file.
    columns = TableRows(path).columns
    return {name: torch.from_numpy(columns[name].copy()) for name in names or columns}


class TableRows:
    """A file of `write_arrays`, memory-mapped and read by row number.

    Attributes:
        n_rows: rows of the table.
        columns: (R,) or (R, W) each, views of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            ValueError: the file is cut off or no Arrow stream.
        """
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = pa.ipc.open_stream(pa.py_buffer(self._mapping)).read_all()
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:  # Arrow's errors are ValueErrors
            raise ValueError(
                f"file '{path}' is damaged: {error}; delete its folder and encode again"
            ) from error
        self.n_rows: int = table.num_rows
        self.columns: dict[str, Array] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            array = column.chunk(0)
            if pa.types.is_fixed_size_list(array.type):
                flat = array.flatten().to_numpy(zero_copy_only=True)
                self.columns[name] = flat.reshape(-1, array.type.list_size)
            else:
                self.columns[name] = array.to_numpy(zero_copy_only=True)

    def take(self, rows_B: NDArray[np.int64]) -> dict[str, Array]:
        """Return the rows of every column, in the order given and in memory of their own."""
        return {name: np.take(column, rows_B, axis=0) for name, column in self.columns.items()}

    def will_need(self, stretches: Iterable[Stretch]) -> None:
        """Ask the system to read stretches of rows from the disk; return before it has.

        Reading on demand fetches page after page, and waits for each.
        """
        if not hasattr(self._mapping, "madvise"):
            return
        base = np.frombuffer(self._mapping, np.uint8).ctypes.data
        for start, stop in stretches:
            for column in self.columns.values():
                view = column[start:stop]
                first = (view.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
                n_bytes = view.ctypes.data + view.nbytes - base - first
                self._mapping.madvise(mmap.MADV_WILLNEED, first, n_bytes)


def content_hash(table: pa.Table) -> bytes:
    """Return a digest of the column names, types and values; chunks and metadata do not count."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    sink = _HashedBytes()
    # A stream, for a batch alone would leave out the values of dictionaries.
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), plain.schema) as writer:
        for batch in plain.to_batches(max_chunksize=_ROWS_HASHED_AT_ONCE):
            # Copied, for the end of a buffer may hold bytes of rows that were cut off.
            writer.write_batch(batch.take(pa.array(np.arange(len(batch)))))
    return sink.digest.digest()


class _HashedBytes(io.RawIOBase):
    """A file that keeps a digest of what is written."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)
