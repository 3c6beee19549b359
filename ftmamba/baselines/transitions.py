"""What follows what: training interactions as sequences, and sparse counts of them.

Shapes: U users, I items, R interactions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.extra import require
from ftmamba.data.interactions import Interactions

Sequences = tuple[NDArray[np.int64], NDArray[np.int64]]
"""User and item (R,) of each interaction, by user, each user's oldest first."""


def sequences_of(train: Interactions) -> Sequences:
    """Sort by user and time, equal times as the file has them; without times by user alone."""
    times_R = train.times if train.times is not None else np.zeros(len(train), np.int64)
    order_R = np.lexsort((times_R, train.user_ids))
    return train.user_ids[order_R], train.item_ids[order_R]


def transition_counts(
    sequences: Sequences, n_items: int, distance_weights: NDArray[np.float32], baseline: str
) -> Any:
    """Return a CSR matrix (I, I): item -> later item of the same user, summed weights.

    Args:
        sequences: from `sequences_of`.
        n_items: size of the catalogue.
        distance_weights: weight of a pair that is 1, 2, ... interactions apart.
        baseline: whose name an error about a missing package tells.
    """
    sparse = require("scipy.sparse", baseline)
    user_R, item_R = sequences
    counts_II = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for distance, weight in enumerate(distance_weights, start=1):
        is_same = user_R[distance:] == user_R[:-distance]
        pair = item_R[:-distance][is_same], item_R[distance:][is_same]
        weights = np.full(len(pair[0]), weight, np.float32)
        counts_II += sparse.csr_matrix((weights, pair), shape=(n_items, n_items))
    return counts_II


def ages_of(user_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many events of its user follow each event (R,) of sorted sequences."""
    counts_U = np.bincount(user_R)
    return np.cumsum(counts_U)[user_R] - 1 - np.arange(len(user_R))


def weighted_histories(
    sequences: Sequences, weights_R: NDArray[np.float32], shape: tuple[int, int], baseline: str
) -> Any:
    """Return a CSR matrix (U, I) of the weights of each user's items, those of 0 left out."""
    sparse = require("scipy.sparse", baseline)
    user_R, item_R = sequences
    is_kept_R = weights_R != 0
    pairs = user_R[is_kept_R], item_R[is_kept_R]
    return sparse.csr_matrix((weights_R[is_kept_R], pairs), shape=shape)
