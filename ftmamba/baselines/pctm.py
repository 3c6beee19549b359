"""PCTM: transitions counted at many distances, smoothed, and no training.

Shapes: U users, I items, R interactions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.fitted import (
    FittedBaseline,
    Scores,
    check_positive,
    check_train,
    check_whole,
    with_popularity_for_cold,
)
from ftmamba.baselines.history import item_counts
from ftmamba.baselines.transitions import (
    ages_of,
    sequences_of,
    transition_counts,
    weighted_histories,
)
from ftmamba.data.interactions import Interactions


@dataclass(frozen=True)
class PCTM:
    """Score of j: evidence that j follows, summed over the user's history, less popularity.

    C_ij sums d^-distance_power over the times j came d interactions after i. The evidence is
    E_ij = log(1 + C_ij I / tau), with I the number of items, and the score

        sum_a h_a E[item of age a, j] + popularity_weight log((f_j + 1) / sum_i (f_i + 1))

    where the newest item has age 0 and f counts interactions. Without times the order of the file
    counts. The defaults are of MovieLens-1M.

    Attributes:
        max_distance: farthest transition counted.
        distance_power: how fast a transition loses weight with its distance.
        tau: smoothing; the higher, the more evidence adds up as counts do.
        ratio: among the recent items h_a falls by it from each to the next older one.
        n_recent: so many newest items share `recent_share`; the rest share what is left, alike.
        recent_share: of the weights h, which of a history longer than `n_recent` sum to 1. With 1
            only the recent items count.
        popularity_weight: beta; negative prefers what is rarer.
        max_history: newest items that count.
    """

    max_distance: int = 20
    distance_power: float = 1.0
    tau: float = 150.0
    ratio: float = 0.6
    n_recent: int = 7
    recent_share: float = 0.8
    popularity_weight: float = -0.4
    max_history: int = 200

    def __post_init__(self) -> None:
        whole = {
            "max_distance": self.max_distance,
            "n_recent": self.n_recent,
            "max_history": self.max_history,
        }
        check_whole("pctm", **whole)
        check_positive("pctm", tau=self.tau, ratio=self.ratio, **whole)
        if not 0 <= self.recent_share <= 1:
            raise ValueError(
                f"baseline 'pctm': recent_share must be in [0, 1], got {self.recent_share!r}"
            )

    @property
    def name(self) -> str:
        return "PCTM"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        sequences = sequences_of(train)
        distances = np.arange(1, self.max_distance + 1, dtype=np.float32)
        weights = distances ** np.float32(-self.distance_power)
        evidence_II = transition_counts(sequences, train.n_items, weights, self.name)
        evidence_II.data = np.log1p(evidence_II.data * np.float32(train.n_items / self.tau))
        shape = (train.n_users, train.n_items)
        history_UI = weighted_histories(sequences, self._weights(sequences[0]), shape, self.name)
        counts_I = item_counts(train).astype(np.float64) + 1
        bias_I = (self.popularity_weight * np.log(counts_I / counts_I.sum())).astype(np.float32)

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = (history_UI[user_ids] @ evidence_II).toarray() + bias_I
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)

    def _weights(self, user_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return h of each event (R,); 0 beyond `max_history`."""
        age_R = ages_of(user_R)
        n_R = np.minimum(np.bincount(user_R)[user_R], self.max_history)
        powers = np.float64(self.ratio) ** np.arange(self.n_recent)
        recent_R = powers[np.minimum(age_R, self.n_recent - 1)]
        sum_R = np.cumsum(powers)[np.minimum(n_R, self.n_recent) - 1]
        others_R = (1 - self.recent_share) / np.maximum(n_R - self.n_recent, 1)
        h_R = np.where(age_R < self.n_recent, self.recent_share * recent_R / sum_R, others_R)
        return np.where(age_R < n_R, h_R, 0).astype(np.float32)
