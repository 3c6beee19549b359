"""Batches of training, exactly repeatable: rows and sequences alike are windows of users' events.

A row is a window with one target, a sequence a window with all its targets. The order of an epoch
is a function of (seed, epoch) alone: any batch can be found without reading those before it, which
makes resuming exact, and a global batch is the same windows on one process or on many.

Where the interactions have no order, that of each user's is drawn anew in every epoch: an event is
predicted from some of the user's others, which come in any order, and never from itself.

Shapes: B windows of a batch, T events of the longest history, M targets, F event features, R rows
of a table, W windows of an epoch, U users.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.arrow_files import Stretch, TableRows
from ftmamba.data.encoded import EncodedData
from ftmamba.data.histories import Events, Histories
from modeling_ftmamba.configuration_ftmamba import Column, near

SEQUENCES = ("newest", "every")
"""What an epoch of sequences reads: each user's newest events, or every event as a target once."""

LONGEST_WINDOW = 1000
"""Inputs of a sequence where the history's column sets no max_length."""

_PIECES_A_BLOCK = 16
"""A block mixes rows from so many parts of the file."""

_BATCHES_A_BUCKET = 8
"""Windows of so many batches are sorted by length together."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of users' events, and the items to be predicted in them, on the CPU.

    Attributes:
        user_ids: int64 (B,), rows of the table of users.
        history_ids: int64 (B, T), the items of each window, oldest first, 0 beyond the end; T is 0
            where the model reads no history.
        lengths: int64 (B,), events of each window.
        history_times: int64 (B, T), or None without times.
        event_features: float32 (B, T, F) in the order of the history's column, NaN where one is
            missing; None where the column names none.
        windows: int64 (M,), the window of each target, ascending.
        slots: int64 (M,), how many events of its window are ahead of the target, ascending in a
            window: 0 for a user's first event, which is predicted from none.
        targets: int64 (M,), the items.
        times: int64 (M,), UTC seconds of the targets, or None without times.
        rows: int64 (M,), the number of each target among the training interactions.
    """

    user_ids: Tensor
    history_ids: Tensor
    lengths: Tensor
    history_times: Tensor | None
    event_features: Tensor | None
    windows: Tensor
    slots: Tensor
    targets: Tensor
    times: Tensor | None
    rows: Tensor


@dataclass(frozen=True)
class Share:
    """What one process gets of every global batch.

    Attributes:
        batch_size: windows of a batch on one rank.
        seed: of the order and of the cuts.
        rank: which part this process gets.
        n_ranks: number of parts.
        smallest: windows that a global batch has at least; a last one of fewer is dropped.
    """

    batch_size: int
    seed: int
    rank: int = 0
    n_ranks: int = 1
    smallest: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.n_ranks:
            raise ValueError(f"rank must be in [0, {self.n_ranks}), got {self.rank}")

    def check(self, n_windows: int, what: str) -> None:
        """Refuse fewer windows than processes, or than a batch needs."""
        if n_windows < self.smallest:
            raise ValueError(
                f"in_batch takes negatives from the batch, and there are {n_windows} {what}; give "
                "more data, or another loss such as full_softmax"
            )
        if n_windows < self.n_ranks:
            raise ValueError(
                f"{n_windows} {what} cannot be shared out among {self.n_ranks} processes; give "
                "more data or start fewer processes"
            )


def make_batches(  # noqa: PLR0913 - options of the recipe
    data: EncodedData,
    *,
    sequences: str,
    batch_size: int,
    seed: int,
    rank: int = 0,
    n_ranks: int = 1,
    batch_order: str = "random",
    history_dropout: float = 0.0,
    smallest: int = 1,
) -> "RowBatches | SequenceBatches":
    """Return the batches of a training.

    Args:
        data: the encoded tables.
        sequences: empty for rows, else one of `SEQUENCES`.
        batch_size: as of `Share`, like the next three.
        seed: of the order and of the cuts.
        rank: of this process.
        n_ranks: number of processes.
        batch_order: of rows, "random" or "time": neighbours of the training interactions.
        history_dropout: share of the rows whose whole history is hidden, others in every epoch.
        smallest: as of `Share`.

    Raises:
        ValueError: a value out of its range, or sequences of users without a history.
    """
    share = Share(batch_size, seed, rank, n_ranks, smallest)
    column, histories = data.history_column, data.histories
    if not sequences:
        table = TableBatches(data.interactions, share, in_stretches=batch_order == "time")
        return RowBatches(table, histories, column, seed=seed, history_dropout=history_dropout)
    if column is None or histories is None:
        raise ValueError(
            "training.sequences needs a column of kind 'history' among the users' columns; add "
            "history: {kind: history, max_length: 200} to the schema, or leave training.sequences "
            "empty"
        )
    return SequenceBatches(histories, column, share, windows=sequences)


class TableBatches:
    """Shuffled rows of a table whose columns are numbers or fixed-size lists of numbers.

    The table is cut into pieces; the pieces are permuted and so many of them as fill a block are
    permuted together, row by row. The last rows of an epoch that fill no global batch are dropped,
    other ones in every epoch; a table smaller than one global batch gives one smaller batch, shared
    out among the ranks.

    Attributes:
        n_rows: rows of the table.
        n_batches: batches an epoch, the same on every rank.
    """

    def __init__(
        self, path: Path, share: Share, *, block_size: int = 65_536, in_stretches: bool = False
    ) -> None:
        """Open a file of `write_arrays`.

        Args:
            path: of the file.
            share: of this process.
            block_size: rows shuffled together; more mixes better and takes more memory.
            in_stretches: every global batch is a stretch of neighbouring rows, shuffled; the
                order of the stretches is random. `block_size` then plays no part.
        """
        self._table, self._share = TableRows(path), share
        self.n_rows: int = self._table.n_rows
        share.check(self.n_rows, "training rows")
        self._size: int = min(share.batch_size, self.n_rows // share.n_ranks)
        self._global_size: int = self._size * share.n_ranks
        self._n_pieces = 1 if in_stretches else _PIECES_A_BLOCK
        self._piece_size = (
            self._global_size if in_stretches else max(1, block_size // _PIECES_A_BLOCK)
        )
        self.n_batches: int = self.n_rows // self._global_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of an epoch from batch `start` on, without reading those before.

        Every batch has the table's columns and `rows`, the numbers of its rows in the table.
        """
        pending = np.empty(0, np.int64)
        for rows in self._blocks_ahead(epoch, start):
            pending = np.concatenate([pending, rows])
            n_whole = len(pending) // self._size * self._size
            for rows_B in pending[:n_whole].reshape(-1, self._size):
                batch = {**self._table.take(rows_B), "rows": rows_B}
                yield {name: torch.from_numpy(array) for name, array in batch.items()}
            pending = pending[n_whole:]

    def _blocks_ahead(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """Yield the rows that this rank gets of each block; the disk is one block ahead."""
        waiting = None
        for stretches, rows in self._blocks(epoch, start):
            self._table.will_need(stretches)
            if waiting is not None:
                yield waiting
            waiting = rows
        if waiting is not None:
            yield waiting

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple[list[Stretch], NDArray[np.int64]]]:
        """Yield of each block, from batch `start` on, its stretches and this rank's rows of it."""
        seed = self._share.seed
        generator = np.random.default_rng((seed, epoch))
        pieces = np.arange(0, self.n_rows, self._piece_size)
        if self._n_pieces == 1:
            # Whole stretches only; which rows are left over differs from epoch to epoch.
            n_left = self.n_rows - self.n_batches * self._global_size
            pieces = pieces[: self.n_batches] + generator.integers(n_left + 1)
        pieces = generator.permutation(pieces)
        first_wanted, end = start * self._global_size, self.n_batches * self._global_size
        position = 0
        for number, piece in enumerate(range(0, len(pieces), self._n_pieces)):
            firsts = pieces[piece : piece + self._n_pieces].tolist()
            stretches = [(row, min(row + self._piece_size, self.n_rows)) for row in firsts]
            rows = np.concatenate([np.arange(*stretch) for stretch in stretches])
            wanted = np.arange(max(position, first_wanted), min(position + len(rows), end))
            if len(wanted):
                order = np.random.default_rng((seed, epoch, number)).permutation(len(rows))
                is_mine = wanted % self._global_size // self._size == self._share.rank
                yield stretches, rows[order[wanted[is_mine] - position]]
            position += len(rows)


class RowBatches:
    """Training interactions, each the one target of a window: what its user did before it.

    With times, what happened in the same second is no part of the window.
    """

    def __init__(
        self,
        table: TableBatches,
        histories: Histories | None,
        column: Column | None,
        *,
        seed: int,
        history_dropout: float = 0.0,
    ) -> None:
        """Read a table of interactions, and histories of the same ones if the model does."""
        self._table, self._histories, self._column = table, histories, column
        self._seed, self._dropout, self.n_batches = seed, history_dropout, table.n_batches

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, without reading those before."""
        histories = self._histories and _of_epoch(self._histories, self._seed, epoch)
        most_R = np.full(self._table.n_rows, np.iinfo(np.int64).max)
        if self._dropout:
            drawn_R = np.random.default_rng((self._seed, epoch, 0, 2)).random(len(most_R))
            most_R[drawn_R < self._dropout] = 0
        for table in self._table.epoch(epoch, start=start):
            arrays_B = {name: tensor.numpy() for name, tensor in table.items()}
            user_ids_B, times_B = arrays_B["user_ids"], arrays_B.get("times")
            if histories is None or self._column is None:
                none_B0 = np.zeros((len(user_ids_B), 0), np.int64)
                none_B00 = np.zeros((len(user_ids_B), 0, 0), np.float32)
                events = Events(none_B0, none_B0.sum(1), None, none_B00)
            else:
                n_first_B = most_R[arrays_B["rows"]]
                if times_B is None:
                    n_first_B = np.minimum(n_first_B, histories.n_earlier[arrays_B["rows"]])
                events = histories.newest(
                    user_ids_B,
                    self._column.max_length or len(histories.rows),
                    features=self._column.event_features,
                    before=times_B,
                    n_first=n_first_B,
                )
            yield _batch(
                user_ids_B,
                events,
                windows_M=np.arange(len(user_ids_B)),
                slots_M=events.lengths,
                targets_M=arrays_B,
            )


class SequenceBatches:
    """Windows of users' sequences, in each of which every event but the first is a target.

    `newest`: one window a user, the newest `max_length + 1` events. `every`: as many windows as
    make each event a target once an epoch, at cuts that are drawn anew; a window after a cut has
    the event before the cut as its first input. Their number is the same in every epoch. A user's
    very first event is a target too, predicted from none.

    Windows are shuffled and grouped by length, so that little of a batch is padding. Dropped are,
    other ones in every epoch, a last batch below the smallest, and on several processes fewer
    windows than there are processes. The last batch of a bucket may be smaller.

    Attributes:
        n_windows: windows an epoch, those of all processes.
        n_batches: batches an epoch, the same on every rank.
    """

    def __init__(self, histories: Histories, column: Column, share: Share, *, windows: str) -> None:
        """Plan the windows, of at most as many inputs as the column's max_length.

        Raises:
            ValueError: a value out of its range, or too few users with two events.
        """
        if windows not in SEQUENCES:
            raise ValueError(
                f"sequences must be one of {', '.join(SEQUENCES)}, got {windows!r}"
                f"{near(windows, SEQUENCES)}"
            )
        self._histories, self._features, self._share = histories, column.event_features, share
        longest = self._max_length = column.max_length or LONGEST_WINDOW
        self._user_ids = np.flatnonzero(histories.counts > 1)
        targets_U = histories.counts[self._user_ids] - 1
        # Half a window to spare, so that there is room for the cuts to move.
        n_spread_U = -(-(targets_U + longest // 2) // longest)
        self._skipped_U = np.maximum(targets_U - longest, 0) * (windows == "newest")
        self._n_targets_U = targets_U - self._skipped_U
        self._n_windows_U = np.where(self._n_targets_U <= longest, 1, n_spread_U)
        self.n_windows = int(self._n_windows_U.sum())
        share.check(self.n_windows, "windows of users with two training events or more")
        size = share.batch_size * share.n_ranks
        self._n_shared = self.n_windows // share.n_ranks * share.n_ranks
        if self._n_shared % size < share.smallest:
            self._n_shared -= self._n_shared % size
        self.n_batches = -(-self._n_shared // size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, without reading those before."""
        histories = _of_epoch(self._histories, self._share.seed, epoch)
        events_R = {"item_ids": histories.items.item_ids, "rows": histories.rows}
        if histories.events.times is not None:
            events_R["times"] = histories.events.times
        user_W, begin_W, n_inputs_W = self._cuts(
            np.random.default_rng((self._share.seed, epoch, 0))
        )
        for chosen_B in self._batches(n_inputs_W, epoch)[start:]:
            user_ids_B, begins_B = self._user_ids[user_W[chosen_B]], begin_W[chosen_B]
            starts_B = histories.items.starts[user_ids_B] + begins_B
            n_inputs_B = n_inputs_W[chosen_B]
            first_slot_B = (begins_B > 0).astype(np.int64)
            n_targets_B = n_inputs_B + 1 - first_slot_B
            windows_M = np.repeat(np.arange(len(chosen_B)), n_targets_B)
            before_B = np.cumsum(n_targets_B) - n_targets_B
            slots_M = np.arange(len(windows_M)) + (first_slot_B - before_B)[windows_M]
            index_M = starts_B[windows_M] + slots_M
            yield _batch(
                user_ids_B,
                histories.stretches(starts_B, n_inputs_B, self._features),
                windows_M=windows_M,
                slots_M=slots_M,
                targets_M={name: values_R[index_M] for name, values_R in events_R.items()},
            )

    def _cuts(
        self, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Draw the windows of an epoch: (W,) index of the user, first input, number of inputs.

        A user's n targets fall into k windows: k - 2 whole ones, and a first and a last that share
        the rest, as the draw decides.
        """
        n_U, k_U, whole = self._n_targets_U, self._n_windows_U, self._max_length
        rest_U = n_U - np.maximum(k_U - 2, 0) * whole
        least_U, most_U = np.maximum(1, rest_U - whole), np.minimum(whole, rest_U - 1)
        drawn_U = generator.integers(least_U, np.maximum(most_U, least_U) + 1)
        first_U = np.where(k_U == 1, n_U, drawn_U)
        user_W = np.repeat(np.arange(len(k_U)), k_U)
        number_W = np.arange(len(user_W)) - np.repeat(np.cumsum(k_U) - k_U, k_U)
        begin_W = np.where(number_W > 0, first_U[user_W] + (number_W - 1) * whole, 0)
        end_W = np.minimum(first_U[user_W] + number_W * whole, n_U[user_W])
        return user_W, begin_W + self._skipped_U[user_W], end_W - begin_W

    def _batches(self, n_inputs_W: NDArray[np.int64], epoch: int) -> list[NDArray[np.int64]]:
        """Return the windows of each of this rank's batches, in the order of an epoch."""
        rank, n_ranks = self._share.rank, self._share.n_ranks
        generator = np.random.default_rng((self._share.seed, epoch, 1))
        order_W = generator.permutation(self.n_windows)[: self._n_shared]
        size = self._share.batch_size * n_ranks
        batches = []
        for first in range(0, self._n_shared, size * _BATCHES_A_BUCKET):
            bucket = order_W[first : first + size * _BATCHES_A_BUCKET]
            bucket = bucket[np.argsort(n_inputs_W[bucket], kind="stable")]
            # Neighbours in length go to different ranks, which so have the same work.
            batches += [
                bucket[begin : begin + size][rank::n_ranks] for begin in range(0, len(bucket), size)
            ]
        return [batches[index] for index in generator.permutation(len(batches))]


def _of_epoch(histories: Histories, seed: int, epoch: int) -> Histories:
    """Return the histories, those of sets in the order that is drawn for the epoch."""
    if histories.is_ordered:
        return histories
    return histories.reordered(np.random.default_rng((seed, epoch, 0, 1)))


def _batch(
    user_ids_B: NDArray[np.int64],
    events: Events,
    *,
    windows_M: NDArray[np.int64],
    slots_M: NDArray[np.int64],
    targets_M: Mapping[str, NDArray[np.int64]],
) -> Batch:
    """Return windows of events, and targets with `item_ids`, `rows` and, where known, `times`."""
    has_features = events.features.shape[2] > 0
    times_M = targets_M.get("times")
    return Batch(
        user_ids=torch.from_numpy(user_ids_B),
        history_ids=torch.from_numpy(events.item_ids),
        lengths=torch.from_numpy(events.lengths),
        history_times=None if events.times is None else torch.from_numpy(events.times),
        event_features=torch.from_numpy(events.features) if has_features else None,
        windows=torch.from_numpy(windows_M),
        slots=torch.from_numpy(slots_M),
        targets=torch.from_numpy(targets_M["item_ids"]),
        times=None if times_M is None else torch.from_numpy(times_M),
        rows=torch.from_numpy(targets_M["rows"]),
    )
