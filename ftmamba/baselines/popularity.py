"""The same list for everybody: what most took, ever or lately."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftmamba.baselines.fitted import FittedBaseline, Scores, check_positive, check_train
from ftmamba.baselines.history import item_counts
from ftmamba.data.interactions import Interactions

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Popularity:
    """Score of an item: its number of training interactions."""

    @property
    def name(self) -> str:
        return "popularity"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        return _same_for_all(self.name, item_counts(train), train.n_users)


@dataclass(frozen=True)
class RecentPopularity:
    """Score of an item: its training interactions in [as_of - days, as_of).

    Attributes:
        days: length of the window.
    """

    days: float = 7

    def __post_init__(self) -> None:
        check_positive("recent-popularity", days=self.days)

    @property
    def name(self) -> str:
        return f"popularity {self.days:g}d"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:
        check_train(self.name, train)
        if train.times is None:
            raise ValueError(
                f"baseline {self.name!r} needs the time of every interaction, but the interactions "
                "have none; name their time column in the schema, or leave this baseline out"
            )
        until = as_of if as_of is not None else int(train.times.max()) + 1
        is_recent = (train.times >= until - self.days * SECONDS_A_DAY) & (train.times < until)
        return _same_for_all(self.name, item_counts(train.select(is_recent)), train.n_users)


def _same_for_all(name: str, popularity: Scores, n_users: int) -> FittedBaseline:
    """Return a model to which every user is without history."""

    def score_warm(user_ids: NDArray[np.int64]) -> Scores:
        return np.tile(popularity, (len(user_ids), 1))

    return FittedBaseline(name, score_warm, np.zeros(n_users, bool), popularity)
