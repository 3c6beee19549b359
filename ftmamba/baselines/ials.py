"""Implicit matrix factorisation by alternating least squares (Hu et al. 2008), from `implicit`.

Shapes: U users, D factors.
"""

from dataclasses import dataclass

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
from ftmamba.baselines.history import history_matrix
from ftmamba.data.interactions import Interactions


@dataclass(frozen=True)
class IALS:
    """Inner products of factors that explain who took what, absent pairs weighing less.

    Attributes:
        n_factors: width.
        regularization: of all factors.
        alpha: weight of a pair that occurs; one that does not weighs 1.
        n_iterations: over users and items.
        seed: of the first factors; the fit repeats exactly.
    """

    n_factors: int = 32
    regularization: float = 30.0
    alpha: float = 5.0
    n_iterations: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("ials", n_factors=self.n_factors, n_iterations=self.n_iterations)
        check_positive(
            "ials",
            n_factors=self.n_factors,
            regularization=self.regularization,
            alpha=self.alpha,
            n_iterations=self.n_iterations,
        )

    @property
    def name(self) -> str:
        return "iALS"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        als = require("implicit.cpu.als", self.name)
        threads = require("threadpoolctl", self.name)
        history_UI = history_matrix(train, self.name)
        # implicit has threads of its own; those of BLAS beside them make it ten times slower.
        with threads.threadpool_limits(1, "blas"):
            model = als.AlternatingLeastSquares(
                factors=self.n_factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.n_iterations,
                random_state=self.seed,
            )
            model.fit(history_UI, show_progress=False)
        users_UD, items_ID = model.user_factors, model.item_factors

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = users_UD[user_ids] @ items_ID.T
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)
