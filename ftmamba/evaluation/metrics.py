"""Metrics of one list of recommendations per user.

Each takes hits_UK, where hits[u, j] is True if the item of rank j+1 of user u's list is among the
user's test items, and n_relevant_U >= 1, the number of those test items; each returns one value per
user, between 0 and 1. K is the length of the list.

Shapes: U users, K ranks.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def precision(hits_UK: Hits, n_relevant_U: Counts) -> Values:  # noqa: ARG001
    """P@K: hits over K, even if the user has fewer than K test items."""
    shares: Values = hits_UK.mean(1)
    return shares


def recall(hits_UK: Hits, n_relevant_U: Counts) -> Values:
    """R@K: hits over the number of test items."""
    shares: Values = hits_UK.sum(1) / n_relevant_U
    return shares


def reciprocal_rank(hits_UK: Hits, n_relevant_U: Counts) -> Values:  # noqa: ARG001
    """MRR@K: one over the rank of the first hit, 0 without a hit."""
    values: Values = hits_UK.any(1) / (hits_UK.argmax(1) + 1)
    return values


def hit_rate(hits_UK: Hits, n_relevant_U: Counts) -> Values:  # noqa: ARG001
    """HR@K: 1 if there is a hit, else 0."""
    values: Values = hits_UK.max(1).astype(np.float64)
    return values


def ndcg(hits_UK: Hits, n_relevant_U: Counts) -> Values:
    """NDCG@K with binary relevance: sum of hits over log2(rank + 1), over that of the best list.

    The best list has hits at its first min(K, test items) ranks.
    """
    n_ranks = hits_UK.shape[1]
    discounts_K = 1 / np.log2(np.arange(2, n_ranks + 2))
    best_U = np.cumsum(discounts_K)[np.minimum(n_relevant_U, n_ranks) - 1]
    gains: Values = hits_UK @ discounts_K / best_U
    return gains


def average_precision(hits_UK: Hits, n_relevant_U: Counts) -> Values:
    """MAP@K: precision at the rank of every hit, summed, over min(K, test items)."""
    n_ranks = hits_UK.shape[1]
    precision_UK = np.cumsum(hits_UK, axis=1) / np.arange(1, n_ranks + 1)
    summed: Values = (precision_UK * hits_UK).sum(1) / np.minimum(n_relevant_U, n_ranks)
    return summed


METRICS: Mapping[str, Callable[[Hits, Counts], Values]] = {
    "P": precision,
    "R": recall,
    "MRR": reciprocal_rank,
    "HR": hit_rate,
    "NDCG": ndcg,
    "MAP": average_precision,
}
