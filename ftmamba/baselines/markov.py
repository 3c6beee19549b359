"""A Markov chain over items: what follows what.

Shapes: U users, I items, R interactions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.extra import require
from ftmamba.baselines.fitted import (
    FittedBaseline,
    Scores,
    check_positive,
    check_train,
    check_whole,
    with_popularity_for_cold,
)
from ftmamba.baselines.history import item_counts
from ftmamba.data.interactions import Interactions


@dataclass(frozen=True)
class Markov:
    """Score of j: transitions to j from the user's last items, plus a little popularity.

    A transition from i to j weighs 1/d where j came d interactions after i, d = 1 .. max_distance.
    Without times the order of the file counts.

    Attributes:
        last_weights: weight of the user's last item, the one before it, and so on.
        max_distance: farthest transition counted.
        popularity_weight: of an item's count; orders the items that never followed.
    """

    last_weights: tuple[float, ...] = (1.0,)
    max_distance: int = 3
    popularity_weight: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "last_weights", tuple(self.last_weights))
        if not self.last_weights:
            raise ValueError("baseline 'markov': last_weights is empty; give at least one weight")
        check_whole("markov", max_distance=self.max_distance)
        check_positive("markov", max_distance=self.max_distance)

    @property
    def name(self) -> str:
        n_last = len(self.last_weights)
        return "Markov" if n_last == 1 else f"Markov, last {n_last}"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        times_R = train.times if train.times is not None else np.zeros(len(train), np.int64)
        order_R = np.lexsort((times_R, train.user_ids))
        user_R, item_R = train.user_ids[order_R], train.item_ids[order_R]
        transitions_II = self._transitions(user_R, item_R, train.n_items)
        query_UI = self._last_items(user_R, item_R, (train.n_users, train.n_items))
        bias_I = np.float32(self.popularity_weight) * item_counts(train)

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = (query_UI[user_ids] @ transitions_II).toarray() + bias_I
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)

    def _transitions(
        self, user_R: NDArray[np.int64], item_R: NDArray[np.int64], n_items: int
    ) -> Any:
        """Return a CSR matrix (I, I) of summed weights, item -> later item of the same user."""
        sparse = require("scipy.sparse", self.name)
        transitions_II = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
        for distance in range(1, self.max_distance + 1):
            is_same = user_R[distance:] == user_R[:-distance]
            pair = item_R[:-distance][is_same], item_R[distance:][is_same]
            weights = np.full(len(pair[0]), 1 / distance, np.float32)
            transitions_II += sparse.csr_matrix((weights, pair), shape=(n_items, n_items))
        return transitions_II

    def _last_items(
        self, user_R: NDArray[np.int64], item_R: NDArray[np.int64], shape: tuple[int, int]
    ) -> Any:
        """Return a CSR matrix (U, I) of the weights of each user's last items."""
        sparse = require("scipy.sparse", self.name)
        counts_U = np.bincount(user_R, minlength=shape[0])
        age_R = np.cumsum(counts_U)[user_R] - 1 - np.arange(len(user_R))
        is_last_R = age_R < len(self.last_weights)
        weights = np.array(self.last_weights, np.float32)[age_R[is_last_R]]
        return sparse.csr_matrix((weights, (user_R[is_last_R], item_R[is_last_R])), shape=shape)
