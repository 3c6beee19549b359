"""Batches of users' sequences for training at every position, exactly repeatable.

A window is a stretch of one user's events; each event but its first is foretold from those before
it. Windows are shuffled and grouped by length, so that little of a batch is padding. The order of
an epoch is a function of (seed, epoch) alone, and a global batch is the same windows on one
process or on many.

Shapes: B windows of a batch, T events of its longest, W windows of an epoch, U users.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.histories import Histories
from modeling_ftmamba.configuration_ftmamba import near

WINDOWS = ("newest", "every")
"""What an epoch reads: each user's newest events alone, or every event as a target once."""

_KEY_OF_FEATURE = {"gap": "gaps", "weight": "weights"}

BATCHES_A_BUCKET = 8
"""Windows of so many batches are sorted by length together."""


class SequenceBatches:
    """Windows of users' sequences.

    `newest`: one window a user, the newest `max_length + 1` events. `every`: as many windows as
    make each event a target once an epoch, at cuts that are drawn anew; a window after a cut has
    the event before the cut as its first input. Their number is the same in every epoch.

    Nothing is dropped on one process; on several, fewer windows than there are processes, other
    ones in every epoch. The last batch of a bucket may be smaller.

    Attributes:
        n_windows: windows an epoch, those of all processes.
        n_batches: batches an epoch, the same on every rank.
    """

    def __init__(
        self,
        histories: Histories,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        windows: str = "newest",
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        """Plan the windows.

        Args:
            histories: what users took in training.
            max_length: inputs of a window, at most.
            batch_size: windows of a batch on one rank.
            seed: of the order and of the cuts.
            windows: one of `WINDOWS`.
            rank: which part of every global batch this process gets.
            n_ranks: number of such parts.

        Raises:
            ValueError: a value out of its range, or nobody has two events.
        """
        _check(windows, max_length=max_length, batch_size=batch_size, rank=rank, n_ranks=n_ranks)
        self._histories, self._max_length, self._seed = histories, max_length, seed
        self._rank, self._n_ranks, self._global_size = rank, n_ranks, batch_size * n_ranks
        n_targets_U = histories.counts - 1
        self._user_ids = np.flatnonzero(n_targets_U >= 1)
        targets_U = n_targets_U[self._user_ids]
        # Half a window to spare, so that there is room for the cuts to move.
        n_spread_U = -(-(targets_U + max_length // 2) // max_length)
        is_whole_U = (targets_U <= max_length) | (windows == "newest")
        self._n_windows_U = np.where(is_whole_U, 1, n_spread_U)
        self._skipped_U = np.zeros_like(targets_U)
        if windows == "newest":
            self._skipped_U = np.maximum(targets_U - max_length, 0)
        self._n_targets_U = targets_U - self._skipped_U
        self.n_windows = int(self._n_windows_U.sum())
        if self.n_windows < n_ranks:
            raise ValueError(
                f"{self.n_windows} windows of users with two training events or more cannot be "
                f"shared out among {n_ranks} processes; give more data or start fewer processes"
            )
        self.n_batches = -(-(self.n_windows // n_ranks) // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of an epoch from batch `start` on.

        Keys: `user_ids` int64 (B,); `history_ids` int64 (B, T), the inputs, 0 beyond the end;
        `lengths` int64 (B,); `targets` int64 (B, T), at t the event after input t, -1 beyond the
        end; `first_targets` int64 (B,), the window's first event if it is the user's first of all,
        to be foretold from nothing, else -1; and where the data has them `times` int64 (B, T), and
        float32 (B, T) of the inputs, under the key of its name (`key_of_feature`), each event
        feature.
        """
        windows = self._windows(np.random.default_rng((self._seed, epoch, 0)))
        for rows_B in self._batches(windows.n_targets, epoch)[start:]:
            yield self._batch(windows, rows_B)

    def _windows(self, generator: np.random.Generator) -> "_Windows":
        """Draw the cuts of an epoch.

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
        return _Windows(user_W, begin_W + self._skipped_U[user_W], end_W - begin_W)

    def _batches(self, n_targets_W: NDArray[np.int64], epoch: int) -> list[NDArray[np.int64]]:
        """Return the windows of each of this rank's batches, in the order of an epoch."""
        generator = np.random.default_rng((self._seed, epoch, 1))
        n_shared = self.n_windows // self._n_ranks * self._n_ranks
        order_W = generator.permutation(self.n_windows)[:n_shared]
        size = self._global_size
        batches = []
        for first in range(0, n_shared, size * BATCHES_A_BUCKET):
            bucket = order_W[first : first + size * BATCHES_A_BUCKET]
            bucket = bucket[np.argsort(n_targets_W[bucket], kind="stable")]
            # Neighbours in length go to different ranks, which so have the same work.
            batches += [
                bucket[place : place + size][self._rank :: self._n_ranks]
                for place in range(0, len(bucket), size)
            ]
        return [batches[place] for place in generator.permutation(len(batches))]

    def _batch(self, windows: "_Windows", rows_B: NDArray[np.int64]) -> dict[str, Tensor]:
        user_ids_B = self._user_ids[windows.users[rows_B]]
        begins_B = windows.begins[rows_B]
        starts_B = self._histories.items.starts[user_ids_B] + begins_B
        n_inputs_B = windows.n_targets[rows_B]
        inputs = self._histories.stretches(starts_B, n_inputs_B, ())
        table = self._histories.events
        padded = table.padded(starts_B, n_inputs_B)
        targets_BT = self._histories.stretches(starts_B + 1, n_inputs_B, ()).item_ids
        is_event_BT = np.arange(targets_BT.shape[1]) < n_inputs_B[:, None]
        arrays = {
            "user_ids": user_ids_B,
            "history_ids": inputs.item_ids,
            "lengths": inputs.lengths,
            "targets": np.where(is_event_BT, targets_BT, -1),
            "first_targets": np.where(begins_B == 0, inputs.item_ids[:, 0], -1),
            "times": inputs.times,
            key_of_feature("gap"): None if table.gaps is None else padded.of(table.gaps),
            key_of_feature("weight"): None if table.weights is None else padded.of(table.weights),
        }
        arrays |= {
            key_of_feature(name): padded.of(values) for name, values in table.context.items()
        }
        return {
            name: torch.from_numpy(array) for name, array in arrays.items() if array is not None
        }


def key_of_feature(name: str) -> str:
    """Return under which key a batch holds an event feature: `gaps`, `weights`, `context/price`."""
    return _KEY_OF_FEATURE.get(name, f"context/{name}")


@dataclass(frozen=True, eq=False)
class _Windows:
    """Windows of an epoch.

    Attributes:
        users: (W,), place among the users who have windows.
        begins: (W,), place of the first input among the user's events.
        n_targets: (W,), as many as inputs.
    """

    users: NDArray[np.int64]
    begins: NDArray[np.int64]
    n_targets: NDArray[np.int64]


def _check(windows: str, *, rank: int, n_ranks: int, **sizes: int) -> None:
    if windows not in WINDOWS:
        raise ValueError(
            f"windows must be one of {', '.join(WINDOWS)}, got {windows!r}{near(windows, WINDOWS)}"
        )
    for name, value in (*sizes.items(), ("n_ranks", n_ranks)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0 <= rank < n_ranks:
        raise ValueError(f"rank must be in [0, {n_ranks}), got {rank}")
