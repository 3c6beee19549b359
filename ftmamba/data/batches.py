"""Shuffled batches from a memory-mapped Arrow table, exactly repeatable.

The order of an epoch is a function of (seed, epoch) alone. The table is cut into pieces; the
pieces are permuted and so many of them as fill a block are permuted together, row by row. Any
batch can be found without reading those before it, which makes resuming exact, and a global batch
is the same rows on one process or on many.

Shapes: R rows of the table, B rows of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ftmamba.data.arrow_files import Stretch, TableRows

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
        self._table = TableRows(source)
        self.n_rows: int = self._table.n_rows
        if self.n_rows < n_ranks:
            raise ValueError(
                f"{self.n_rows} training rows cannot be shared out among {n_ranks} processes; "
                "start fewer processes"
            )
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
        size = self._global_size // self._n_ranks
        pending = np.empty(0, np.int64)
        for rows in self._rows_by_block(epoch, start):
            pending = np.concatenate([pending, rows])
            n_whole = len(pending) // size * size
            for rows_B in pending[:n_whole].reshape(-1, size):
                batch = {**self._table.take(rows_B), "rows": rows_B}
                yield {name: torch.from_numpy(array) for name, array in batch.items()}
            pending = pending[n_whole:]

    def _rows_by_block(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """Yield the rows that this rank gets of each block; the disk is one block ahead."""
        blocks = self._blocks(epoch, start)
        following = next(blocks, None)
        self._fetch(following)
        while following is not None:
            block, following = following, next(blocks, None)
            self._fetch(following)
            yield block.rows()[block.chosen]

    def _fetch(self, block: "_Block | None") -> None:
        if block is not None:
            self._table.will_need(block.stretches)

    def _blocks(self, epoch: int, start: int) -> Iterator["_Block"]:
        """Yield the blocks that hold something from batch `start` on, in order."""
        starts = self._piece_starts(np.random.default_rng((self._seed, epoch)))
        first_position = start * self._global_size
        end_position = self.n_batches * self._global_size
        position = 0
        for number, piece in enumerate(range(0, len(starts), self._n_pieces)):
            firsts = starts[piece : piece + self._n_pieces].tolist()
            stretches = [(row, min(row + self._piece_size, self.n_rows)) for row in firsts]
            n_rows = sum(after - row for row, after in stretches)
            begin, stop = max(position, first_position), min(position + n_rows, end_position)
            if begin < stop:
                generator = np.random.default_rng((self._seed, epoch, number))
                order = generator.permutation(n_rows)
                wanted = self._of_rank(np.arange(begin, stop))
                yield _Block(stretches, order[wanted - position])
            position += n_rows

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


@dataclass(frozen=True)
class _Block:
    """Stretches of rows that are shuffled together.

    Attributes:
        stretches: each but the table's last of one size.
        chosen: which of their rows, counted through all stretches, this rank gets, in order.
    """

    stretches: list[Stretch]
    chosen: NDArray[np.int64]

    def rows(self) -> NDArray[np.int64]:
        """Return the numbers in the table of the stretches' rows."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.stretches])
