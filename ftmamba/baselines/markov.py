"""A Markov chain over items: what follows what.

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
        sequences = sequences_of(train)
        distance_weights = (1 / np.arange(1, self.max_distance + 1)).astype(np.float32)
        transitions_II = transition_counts(sequences, train.n_items, distance_weights, self.name)
        age_R = ages_of(sequences[0])
        last = np.array((*self.last_weights, 0), np.float32)
        weights_R = last[np.minimum(age_R, len(self.last_weights))]
        shape = (train.n_users, train.n_items)
        query_UI = weighted_histories(sequences, weights_R, shape, self.name)
        bias_I = np.float32(self.popularity_weight) * item_counts(train)

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = (query_UI[user_ids] @ transitions_II).toarray() + bias_I
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)
