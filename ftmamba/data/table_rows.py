"""The rows of an Arrow table, read by number; those of a file are fetched before they are wanted.

Shapes: R rows of the table, B rows read.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftmamba.data.arrow_tensors import Array, column_chunks, map_table_and_file

Stretch = tuple[int, int]
"""First row, and the row after the last."""


class TableRows:
    """A table whose columns are numbers or fixed-size lists of numbers.

    Attributes:
        n_rows: rows of the table.
    """

    def __init__(self, source: str | Path | pa.Table) -> None:
        """Open an Arrow stream file, which is memory-mapped, or take a table."""
        if isinstance(source, pa.Table):
            table, self._mapping = source, None
        else:
            table, self._mapping = map_table_and_file(Path(source))
        self.n_rows: int = table.num_rows
        self._columns = {
            name: _Column(column_chunks(table.column(name))) for name in table.column_names
        }

    def take(self, rows_B: NDArray[np.int64]) -> dict[str, Array]:
        """Return the rows of every column, in the order given and in memory of their own."""
        return {name: column.take(rows_B) for name, column in self._columns.items()}

    def will_need(self, stretches: Iterable[Stretch]) -> None:
        """Ask the system to read stretches of rows from the disk; return before it has.

        Reading on demand fetches page after page, and waits for each.
        """
        if self._mapping is None or not hasattr(self._mapping, "madvise"):
            return
        base = np.frombuffer(self._mapping, np.uint8).ctypes.data
        for start, stop in stretches:
            for column in self._columns.values():
                for view in column.views(start, stop):
                    first = (view.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
                    n_bytes = view.ctypes.data + view.nbytes - base - first
                    self._mapping.madvise(mmap.MADV_WILLNEED, first, n_bytes)


class _Column:
    """A column that lies in one chunk or several."""

    def __init__(self, chunks: list[Array]) -> None:
        self._chunks = chunks
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def take(self, rows_B: NDArray[np.int64]) -> Array:
        if len(self._chunks) == 1:
            return np.take(self._chunks[0], rows_B, axis=0)
        # Sorted by chunk, so that each chunk is visited once however many there are.
        chunk_B = np.searchsorted(self._ends, rows_B, side="right")
        ends = np.cumsum(np.bincount(chunk_B, minlength=len(self._chunks)))
        places_by_chunk = np.split(np.argsort(chunk_B, kind="stable"), ends[:-1])
        taken = np.empty((len(rows_B), *self._chunks[0].shape[1:]), self._chunks[0].dtype)
        for chunk, end, places in zip(self._chunks, self._ends, places_by_chunk, strict=True):
            taken[places] = chunk[rows_B[places] - (end - len(chunk))]
        return taken

    def views(self, start: int, stop: int) -> Iterable[Array]:
        """Yield the parts of a stretch of rows, chunk by chunk."""
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[index])
            begin = end - len(self._chunks[index])
            yield self._chunks[index][start - begin : min(stop, end) - begin]
            start, index = end, index + 1
