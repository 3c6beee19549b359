"""Shuffled batches from a memory-mapped Arrow table, exactly repeatable.

The order of an epoch is a function of (seed, epoch) alone. The table is cut into pieces; the
pieces are permuted and so many of them as fill a block are read together and permuted row by row.
Any batch can be found without reading those before it, which makes resuming exact, and a global
batch is the same rows on one process or on many.

Shapes: R rows of the table, B rows of a batch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ftmamba.data.arrow_tensors import Array, column_chunks, map_table

PIECES_A_BLOCK = 16
"""A block mixes rows from so many places of the file."""


class TableBatches:
    """Batches of a table whose columns are numbers or fixed-size lists of numbers.

    The last rows of an epoch that fill no global batch are dropped, other ones in every epoch; a
    table smaller than one global batch gives one smaller batch, shared out among the ranks.

    Attributes:
        n_rows: rows of the table.
        n_batches: batches an epoch, the same on every rank.
    """

    def __init__(
        self,
        source: str | Path | pa.Table,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
        block_size: int = 65_536,
        in_stretches: bool = False,
    ) -> None:
        """Open a table.

        Args:
            source: an Arrow stream file, which is memory-mapped, or a table.
            batch_size: rows of a batch on one rank.
            seed: of the order.
            rank: which part of every global batch this process gets.
            n_ranks: number of such parts.
            block_size: rows shuffled together; more mixes better and takes more memory.
            in_stretches: every global batch is a stretch of neighbouring rows, shuffled; the
                order of the stretches is random. `block_size` then plays no part.
        """
        for name, value in (
            ("batch_size", batch_size), ("n_ranks", n_ranks), ("block_size", block_size)
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 <= rank < n_ranks:
            raise ValueError(f"rank must be in [0, {n_ranks}), got {rank}")
        table = source if isinstance(source, pa.Table) else map_table(Path(source))
        self.n_rows: int = table.num_rows
        if self.n_rows < n_ranks:
            raise ValueError(
                f"{self.n_rows} training rows cannot be shared out among {n_ranks} processes; "
                "start fewer processes"
            )
        self._columns = {
            name: _ChunkedRows(column_chunks(table.column(name))) for name in table.column_names
        }
        self._seed, self._rank, self._n_ranks = seed, rank, n_ranks
        self._global_size: int = min(batch_size * n_ranks, self.n_rows // n_ranks * n_ranks)
        self._n_pieces = 1 if in_stretches else PIECES_A_BLOCK
        self._piece_size = (
            self._global_size if in_stretches else max(1, block_size // PIECES_A_BLOCK)
        )
        self.n_batches: int = self.n_rows // self._global_size

    def __len__(self) -> int:
        return self.n_batches

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches of an epoch from batch `start` on, without reading those before.

        Every batch has the table's columns and `rows`, the numbers of its rows in the table.
        """
        pending: list[dict[str, Array]] = []
        n_pending = 0
        size = self._global_size // self._n_ranks
        for rows, order in self._blocks(epoch, start):
            part = {name: column.take(rows, order) for name, column in self._columns.items()}
            part["rows"] = rows.numbers()[order]
            pending.append(part)
            n_pending += len(order)
            if n_pending < size:
                continue
            whole = _concatenated(pending)
            for first in range(0, n_pending - size + 1, size):
                yield {n: torch.from_numpy(a[first : first + size]) for n, a in whole.items()}
            rest = n_pending % size
            pending = [{n: a[n_pending - rest :] for n, a in whole.items()}] if rest else []
            n_pending = rest

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple["_Pieces", NDArray[np.int64]]]:
        """Yield the pieces of each block and which of their rows this rank gets, in order."""
        starts = self._piece_starts(np.random.default_rng((self._seed, epoch)))
        first_position = start * self._global_size
        end_position = self.n_batches * self._global_size
        position = 0
        for block, piece in enumerate(range(0, len(starts), self._n_pieces)):
            chosen = starts[piece : piece + self._n_pieces]
            pieces = _Pieces(chosen, self._piece_size, self.n_rows)
            begin, stop = max(position, first_position), min(position + len(pieces), end_position)
            if begin < stop:
                generator = np.random.default_rng((self._seed, epoch, block))
                order = generator.permutation(len(pieces))
                wanted = self._of_rank(np.arange(begin, stop))
                yield pieces, order[wanted - position]
            position += len(pieces)

    def _piece_starts(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the first rows of the pieces, in the order of an epoch."""
        starts = np.arange(0, self.n_rows, self._piece_size)
        if self._n_pieces == 1:
            # Whole stretches only; which rows are left over differs from epoch to epoch.
            n_left = self.n_rows - self.n_batches * self._global_size
            starts = starts[: self.n_batches] + generator.integers(n_left + 1)
        return generator.permutation(starts)

    def _of_rank(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of an epoch that belong to this rank."""
        if self._n_ranks == 1:
            return positions
        size = self._global_size // self._n_ranks
        mine: NDArray[np.bool_] = positions % self._global_size // size == self._rank
        return positions[mine]


class InteractionBatches(TableBatches):
    """Batches of training interactions.

    Keys: `user_ids` and `item_ids` int64 (B,); `rows` int64 (B,), the rows of the training
    interactions; where they have them, `times` int64 (B,), `weights` float32 (B,) and
    `popularity` float32 (B, W).
    """


class _Pieces:
    """Stretches of rows that are read together, each but the table's last of one size."""

    def __init__(self, starts: NDArray[np.int64], size: int, n_rows: int) -> None:
        self.bounds = [(int(start), min(int(start) + size, n_rows)) for start in starts]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.bounds)

    def numbers(self) -> NDArray[np.int64]:
        return np.concatenate([np.arange(start, stop) for start, stop in self.bounds])


class _ChunkedRows:
    """A column that lies in several chunks, read by stretches of rows."""

    def __init__(self, chunks: list[Array]) -> None:
        self._chunks = chunks
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def take(self, pieces: _Pieces, order: NDArray[np.int64]) -> Array:
        """Return the rows of the pieces in the order given, in memory of their own."""
        views = [view for start, stop in pieces.bounds for view in self._views(start, stop)]
        return np.take(np.concatenate(views), order, axis=0)

    def _views(self, start: int, stop: int) -> Iterator[Array]:
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[index])
            begin = end - len(self._chunks[index])
            yield self._chunks[index][start - begin : min(stop, end) - begin]
            start, index = end, index + 1


def _concatenated(parts: list[dict[str, Array]]) -> Mapping[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
