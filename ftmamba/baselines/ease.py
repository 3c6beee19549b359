"""EASE (Steck, WWW 2019): a linear auto-encoder of histories, in closed form.

Shapes: U users, I items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.fitted import (
    FittedBaseline,
    Scores,
    check_positive,
    check_train,
    with_popularity_for_cold,
)
from ftmamba.baselines.history import history_matrix
from ftmamba.data.interactions import Interactions

MAX_ITEMS = 30_000
"""An inverse of 30,000 x 30,000 float64 takes 7 GB, and a quarter of an hour on two cores."""


@dataclass(frozen=True)
class EASE:
    """Scores x_u B with B = I - P diag(1 / diag P), P = (X'X + regularization I)^-1.

    Attributes:
        regularization: the only option.
    """

    regularization: float = 500.0

    def __post_init__(self) -> None:
        check_positive("ease", regularization=self.regularization)

    @property
    def name(self) -> str:
        return "EASE"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        if train.n_items > MAX_ITEMS:
            raise ValueError(
                f"baseline 'EASE' inverts a matrix of items x items and takes at most {MAX_ITEMS} "
                f"items, got {train.n_items}; leave it out and keep item-kNN and iALS"
            )
        history_UI = history_matrix(train, self.name)
        gram_II = (history_UI.T @ history_UI).toarray().astype(np.float64)
        diagonal = np.diag_indices(train.n_items)
        gram_II[diagonal] += self.regularization
        inverse_II = np.linalg.inv(gram_II)
        weights_II = (-inverse_II / np.diag(inverse_II)).astype(np.float32)
        weights_II[diagonal] = 0

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = history_UI[user_ids] @ weights_II
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)
