"""Interactions as arrays of dense row ids, and the items of each user.

Shapes: R interactions, U users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interactions:
    """Which user chose which item, and when: R rows in the order of the file.

    Without times and without `row_order` each user's interactions are a set.

    Attributes:
        user_ids: int64 (R,), row of the user in the table of users.
        item_ids: int64 (R,), row of the item in the table of items.
        times: int64 (R,), UTC seconds since 1970, or None where the table has no time.
        weights: float32 (R,), rating or weight, or None.
        n_users: rows of the table of users.
        n_items: rows of the table of items.
        context: float32 (R,), further columns by name that stand beside each event of a history;
            NaN where a number is missing.
        row_order: each user's rows are in order, oldest first where the times are the same.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    times: NDArray[np.int64] | None
    weights: NDArray[np.float32] | None
    n_users: int
    n_items: int
    context: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    row_order: bool = False

    @property
    def is_ordered(self) -> bool:
        """Whether it is known which of a user's interactions came first."""
        return self.times is not None or self.row_order

    def __len__(self) -> int:
        return len(self.user_ids)

    def by_time(self) -> "Interactions":
        """Return the rows oldest first, those of one second in the order of the file.

        Raises:
            ValueError: the interactions have no time.
        """
        if self.times is None:
            raise ValueError(
                "the interactions have no time to be ordered by; name their time column in the "
                "schema"
            )
        return self.select(np.argsort(self.times, kind="stable"))

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Interactions":
        """Return the rows of a mask or an index, in its order."""
        return Interactions(
            self.user_ids[rows],
            self.item_ids[rows],
            None if self.times is None else self.times[rows],
            None if self.weights is None else self.weights[rows],
            self.n_users,
            self.n_items,
            {name: values[rows] for name, values in self.context.items()},
            self.row_order,
        )

    def at_least(self, threshold: float) -> "Interactions":
        """Return the rows whose weight is at least so much.

        Raises:
            ValueError: the interactions have no weight, or no row is left.
        """
        if self.weights is None:
            raise ValueError(
                "positive_threshold needs a weight, and the schema of 'interactions' names none; "
                "name its column as 'weight', or leave positive_threshold out"
            )
        is_positive_R = self.weights >= threshold
        if not is_positive_R.any():
            raise ValueError(
                f"positive_threshold {threshold} leaves no interaction: the largest weight is "
                f"{self.weights.max()}"
            )
        return self.select(is_positive_R)


def concatenate(first: Interactions, second: Interactions) -> Interactions:
    """Return the rows of both, those of `first` before those of `second`."""

    def join(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> NDArray | None:  # type: ignore[type-arg]
        return None if a is None or b is None else np.concatenate([a, b])

    shared = [name for name in first.context if name in second.context]
    return Interactions(
        np.concatenate([first.user_ids, second.user_ids]),
        np.concatenate([first.item_ids, second.item_ids]),
        join(first.times, second.times),
        join(first.weights, second.weights),
        first.n_users,
        first.n_items,
        {name: np.concatenate([first.context[name], second.context[name]]) for name in shared},
        first.row_order and second.row_order,
    )


@dataclass(frozen=True, eq=False)
class ItemsByUser:
    """Interactions sorted by user; user u has `item_ids[starts[u] : starts[u + 1]]`."""

    starts: NDArray[np.int64]
    item_ids: NDArray[np.int64]

    def of(self, user_id: int) -> NDArray[np.int64]:
        """Return the items of one user."""
        return self.item_ids[self.starts[user_id] : self.starts[user_id + 1]]

    def pairs(self, user_ids_U: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (row, item) of every interaction of the users; row counts within `user_ids`."""
        starts_U = self.starts[user_ids_U]
        counts_U = self.starts[user_ids_U + 1] - starts_U
        rows_R = np.repeat(np.arange(len(user_ids_U)), counts_U)
        first_U = np.cumsum(counts_U) - counts_U
        index_R = np.arange(len(rows_R)) - first_U[rows_R] + starts_U[rows_R]
        return rows_R, self.item_ids[index_R]


def items_by_user(interactions: Interactions) -> ItemsByUser:
    """Sort interactions by user; within a user the order is kept."""
    order_R = np.argsort(interactions.user_ids, kind="stable")
    counts_U = np.bincount(interactions.user_ids, minlength=interactions.n_users)
    starts = np.concatenate([[0], np.cumsum(counts_U)])
    return ItemsByUser(starts, interactions.item_ids[order_R])
