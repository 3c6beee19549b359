"""Training interactions as a sparse matrix of users and items.

Shapes: U users, I items.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.extra import require
from ftmamba.data.interactions import Interactions


def history_matrix(train: Interactions, baseline: str) -> Any:
    """Return a scipy CSR matrix (U, I), float32: 1 where a user took an item, however often.

    Weights are left out: that somebody rated an item says more than the rating.
    """
    sparse = require("scipy.sparse", baseline)
    ones = np.ones(len(train), np.float32)
    shape = (train.n_users, train.n_items)
    history_UI = sparse.csr_matrix((ones, (train.user_ids, train.item_ids)), shape=shape)
    history_UI.data[:] = 1
    return history_UI


def item_counts(interactions: Interactions) -> NDArray[np.float32]:
    """Return the number of interactions of every item, (I,)."""
    return np.bincount(interactions.item_ids, minlength=interactions.n_items).astype(np.float32)
