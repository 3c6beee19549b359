"""The items of each user, ready to be looked up by blocks of users.

Shapes: U users, R interactions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions


@dataclass(frozen=True, eq=False)
class ItemsByUser:
    """Interactions sorted by user; user u has `item_ids[starts[u] : starts[u + 1]]`."""

    starts: NDArray[np.int64]
    item_ids: NDArray[np.int64]

    def pairs(self, user_ids_U: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (row, item) of every interaction of the users; row counts within `user_ids`."""
        starts_U = self.starts[user_ids_U]
        counts_U = self.starts[user_ids_U + 1] - starts_U
        rows_R = np.repeat(np.arange(len(user_ids_U)), counts_U)
        first_U = np.cumsum(counts_U) - counts_U
        places_R = np.arange(len(rows_R)) - first_U[rows_R] + starts_U[rows_R]
        return rows_R, self.item_ids[places_R]


def items_by_user(interactions: Interactions) -> ItemsByUser:
    """Sort interactions by user; within a user the order is kept."""
    order_R = np.argsort(interactions.user_ids, kind="stable")
    counts_U = np.bincount(interactions.user_ids, minlength=interactions.n_users)
    starts = np.concatenate([[0], np.cumsum(counts_U)])
    return ItemsByUser(starts, interactions.item_ids[order_R])
