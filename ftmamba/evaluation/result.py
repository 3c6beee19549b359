"""What an evaluation gives: a value a user and metric, from which all summaries come.

Shapes: U users, K places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftmamba.evaluation.bootstrap import N_RESAMPLES, bootstrap_means, percentiles
from ftmamba.evaluation.protocol import Protocol
from modeling_ftmamba.columns import near


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model under one protocol; one row a user who has a test interaction.

    Attributes:
        user_ids: int64 (U,); ascending, unless pooled over splits.
        per_user: metric ("NDCG@10") -> float64 (U,). "popularity_rank@k" is the mean rank of the
            listed items by popularity in training, 1 for the most popular, equals sharing theirs.
        recommended: int64 (U, K), items by place, -1 where nothing was left to recommend.
        is_warm: bool (U,), whether the user had interactions before; True where nothing was told.
        split_ids: int64 (U,), number of the split among those pooled; 0 for a single one.
        n_items: size of the catalogue.
        protocol: what was asked.
    """

    user_ids: NDArray[np.int64]
    per_user: Mapping[str, NDArray[np.float64]]
    recommended: NDArray[np.int64]
    is_warm: NDArray[np.bool_]
    split_ids: NDArray[np.int64]
    n_items: int
    protocol: Protocol

    def __len__(self) -> int:
        return len(self.user_ids)

    def values(self, metric: str) -> NDArray[np.float64]:
        """Return the metric's values, one a user."""
        if metric not in self.per_user:
            raise ValueError(
                f"no metric {metric!r} was evaluated{near(metric, self.per_user)}; "
                f"there are: {', '.join(self.per_user)}"
            )
        if not len(self):
            raise ValueError(f"metric {metric!r} has no mean: the evaluation has no users")
        return self.per_user[metric]

    def mean(self, metric: str) -> float:
        """Return the mean over users."""
        return float(self.values(metric).mean())

    def interval(
        self, metric: str, level: float = 0.95, *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> tuple[float, float]:
        """Return the percentile bootstrap interval of the mean over users.

        It says how the mean would vary with other users of the same kind; neither the spread over
        training seeds nor over splits is in it.
        """
        values_U1 = self.values(metric)[:, None]
        means = bootstrap_means(values_U1, self.user_ids, n_resamples=n_resamples, seed=seed)
        low, high = percentiles(means, level)
        return float(low[0]), float(high[0])

    def coverage(self, k: int) -> float:
        """Return the share of the catalogue that is in some user's first `k` places.

        Over several splits it is the mean of theirs.
        """
        if k not in self.protocol.k:
            raise ValueError(f"coverage was asked at k={k}, but evaluated at {self.protocol.k}")
        shares = []
        for split_id in np.unique(self.split_ids):
            items = np.unique(self.recommended[self.split_ids == split_id, :k])
            shares.append((items >= 0).sum() / self.n_items)
        return float(np.mean(shares))

    @property
    def warm(self) -> "Evaluation":
        """The users who had interactions before."""
        return self.of(self.is_warm)

    @property
    def cold(self) -> "Evaluation":
        """The users of whom no interaction was known; there may be none."""
        return self.of(~self.is_warm)

    def of(self, is_chosen_U: NDArray[np.bool_]) -> "Evaluation":
        """Return the evaluation of a part of its users, given as a mask over its rows."""
        return Evaluation(
            self.user_ids[is_chosen_U],
            {metric: values[is_chosen_U] for metric, values in self.per_user.items()},
            self.recommended[is_chosen_U],
            self.is_warm[is_chosen_U],
            self.split_ids[is_chosen_U],
            self.n_items,
            self.protocol,
        )

    def to_dict(self, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """Return means, 95 % intervals and coverage as plain numbers, ready for JSON or YAML.

        If there are both, warm and cold users are also given apart.
        """
        values = _summary(self, n_resamples, seed)
        if self.is_warm.any() and not self.is_warm.all():
            values["warm"] = _summary(self.warm, n_resamples, seed)
            values["cold"] = _summary(self.cold, n_resamples, seed)
        return values | {
            "n_items": int(self.n_items),
            "protocol": self.protocol.describe(self.n_items),
        }


def _summary(evaluation: Evaluation, n_resamples: int, seed: int) -> dict[str, Any]:
    metrics = {metric: evaluation.mean(metric) for metric in evaluation.per_user}
    coverage = {f"coverage@{k}": evaluation.coverage(k) for k in evaluation.protocol.k}
    values_UQ = np.stack([evaluation.values(metric) for metric in metrics], axis=1)
    means = bootstrap_means(values_UQ, evaluation.user_ids, n_resamples=n_resamples, seed=seed)
    low, high = percentiles(means, 0.95)
    ends = zip(metrics, low.tolist(), high.tolist(), strict=True)
    return {
        "n_users": len(np.unique(evaluation.user_ids)),
        "metrics": metrics | coverage,
        "intervals": {metric: [lower, upper] for metric, lower, upper in ends},
    }


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Put one model's evaluations under several splits together.

    The mean of a metric is over every (user, split).

    Raises:
        ValueError: there are none, or they differ in protocol, metrics or catalogue.
    """
    if not evaluations:
        raise ValueError("there is no evaluation to pool; give at least one")
    first = evaluations[0]
    for other in evaluations[1:]:
        if (other.protocol, other.n_items) != (first.protocol, first.n_items) or list(
            other.per_user
        ) != list(first.per_user):
            raise ValueError(
                "evaluations can be pooled only under one protocol, got "
                f"k={first.protocol.k}, '{first.protocol.describe(first.n_items)}' and "
                f"k={other.protocol.k}, '{other.protocol.describe(other.n_items)}'"
            )
    return Evaluation(
        np.concatenate([e.user_ids for e in evaluations]),
        {m: np.concatenate([e.per_user[m] for e in evaluations]) for m in first.per_user},
        np.concatenate([e.recommended for e in evaluations]),
        np.concatenate([e.is_warm for e in evaluations]),
        np.repeat(np.arange(len(evaluations)), [len(e) for e in evaluations]),
        first.n_items,
        first.protocol,
    )
