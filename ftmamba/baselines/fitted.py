"""What all baselines share.

Shapes: U users (all of the table, or those asked about), I items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.history import item_counts
from ftmamba.data.interactions import Interactions

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FittedBaseline:
    """A baseline that knows its training interactions; a `Scorer`.

    Attributes:
        name: for the row of a table.
        score_warm: ids of users with a history -> their scores (U, I).
        is_warm: bool (U,), the users who have a history.
        popularity: (I,), the scores of everybody else. A baseline knows nothing of a user without
            history, so each falls back to the popularity it was fitted with.
    """

    name: str
    score_warm: Callable[[NDArray[np.int64]], Scores]
    is_warm: NDArray[np.bool_]
    popularity: Scores

    def scores(self, user_ids: NDArray[np.int64]) -> Scores:
        scores_UI = np.tile(self.popularity, (len(user_ids), 1))
        is_warm_U = self.is_warm[user_ids]
        if is_warm_U.any():
            scores_UI[is_warm_U] = self.score_warm(user_ids[is_warm_U])
        return scores_UI


class Baseline(Protocol):
    """Options of a baseline; fitting leaves them as they are."""

    @property
    def name(self) -> str:
        """The row of a table."""

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:
        """Learn from the training interactions.

        Args:
            train: everything known.
            as_of: time at which the model is asked, UTC seconds; by default the second after the
                last training interaction. Only baselines that look at time read it.
        """


def with_popularity_for_cold(
    name: str, train: Interactions, score_warm: Callable[[NDArray[np.int64]], Scores]
) -> FittedBaseline:
    """Add to a personal model the fall-back of users without history: all-time popularity."""
    is_warm_U = np.bincount(train.user_ids, minlength=train.n_users) > 0
    return FittedBaseline(name, score_warm, is_warm_U, item_counts(train))


def check_train(baseline: str, train: Interactions) -> None:
    """Raise ValueError if there is nothing to learn from."""
    if not len(train):
        raise ValueError(
            f"baseline {baseline!r} has no training interactions to learn from; choose another "
            "split or check the tables"
        )


def check_whole(baseline: str, **options: int) -> None:
    """Raise ValueError for an option that is not a whole number."""
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"baseline {baseline!r}: {option} must be a whole number, got {value!r}"
            )


def check_positive(baseline: str, **options: float) -> None:
    """Raise ValueError for an option that is not a positive number."""
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(
                f"baseline {baseline!r}: {option} must be a positive number, got {value!r}"
            )
