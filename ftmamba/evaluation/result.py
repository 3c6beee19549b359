"""What an evaluation returns: values per user, and the means, intervals, tests and tables of them.

Shapes: U users, K ranks, R rows (a user under one split), C users of these rows, Q quantities, S
resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ftmamba.evaluation.protocol import Protocol
from modeling_ftmamba.configuration_ftmamba import near

N_RESAMPLES = 10_000
N_DRAWS_AT_ONCE = 2**22

MOST_RESAMPLED = 20_000
"""Beyond so many users the means of resamples are drawn from their normal limit."""

Values = NDArray[np.float64]


class Unreachable(NamedTuple):
    """Items to predict that are masked because their user has seen them before.

    Attributes:
        items: their number, each counted once for each user.
        of_items: number of all items to predict.
        users: users who have no other.
    """

    items: int = 0
    of_items: int = 0
    users: int = 0

    def describe(self, part: str = "test") -> str:
        """Say it in words; empty if there is none."""
        counted = f"{self.items:,} of {self.of_items:,} {part} items, which no model can recommend"
        return f"masked are {counted} ({self.users:,} users have no other)" if self.items else ""


NONE_HIDDEN = Unreachable()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model under one protocol: one row per user who has a test interaction.

    Attributes:
        user_ids: int64 (U,); ascending, unless pooled over splits.
        per_user: metric ("NDCG@10") -> float64 (U,). "popularity_rank@k" is the mean rank of the
            listed items by popularity in training, 1 for the most popular; equal items share the
            mean of their ranks.
        recommended: int64 (U, K), items by rank, -1 where nothing was left to recommend.
        is_warm: bool (U,), whether the user has seen items; True where none were given.
        split_ids: int64 (U,), number of the split among those pooled; 0 for a single one.
        n_items: size of the catalogue.
        protocol: how users were asked.
        unreachable: what the protocol's mask hides of the test items, of all users.
    """

    user_ids: NDArray[np.int64]
    per_user: Mapping[str, Values]
    recommended: NDArray[np.int64]
    is_warm: NDArray[np.bool_]
    split_ids: NDArray[np.int64]
    n_items: int
    protocol: Protocol
    unreachable: Unreachable = NONE_HIDDEN

    def __len__(self) -> int:
        return len(self.user_ids)

    def values(self, metric: str) -> Values:
        """Return the metric's values, one per user."""
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

        It shows how the mean would vary with other users of the same kind; it includes neither the
        spread over training seeds nor that over splits.
        """
        values_U1 = self.values(metric)[:, None]
        means = bootstrap_means(values_U1, self.user_ids, n_resamples=n_resamples, seed=seed)
        low, high = percentiles(means, level)
        return float(low[0]), float(high[0])

    def coverage(self, k: int) -> float:
        """Return the share of the catalogue that is among the first `k` items of some user.

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
        """The users who have seen items."""
        return self.of(self.is_warm)

    @property
    def cold(self) -> "Evaluation":
        """The users without seen items; there may be none."""
        return self.of(~self.is_warm)

    def of(self, is_chosen_U: NDArray[np.bool_]) -> "Evaluation":
        """Return the evaluation of some of the users, given as a mask over the rows."""
        return Evaluation(
            self.user_ids[is_chosen_U],
            {metric: values[is_chosen_U] for metric, values in self.per_user.items()},
            self.recommended[is_chosen_U],
            self.is_warm[is_chosen_U],
            self.split_ids[is_chosen_U],
            self.n_items,
            self.protocol,
            self.unreachable,
        )

    def to_dict(self, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """Return means, 95 % intervals and coverage as plain numbers, ready for JSON or YAML.

        Warm and cold users are also given separately if there are both.
        """
        values = _summary(self, n_resamples, seed)
        if self.is_warm.any() and not self.is_warm.all():
            values["warm"] = _summary(self.warm, n_resamples, seed)
            values["cold"] = _summary(self.cold, n_resamples, seed)
        words = (self.protocol.describe(self.n_items), self.unreachable.describe())
        return values | {
            "n_items": int(self.n_items),
            "protocol": "; ".join(filter(None, words)),
            "unreachable": self.unreachable._asdict(),
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
    """Join one model's evaluations under several splits; means are over every (user, split).

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
        Unreachable(*map(sum, zip(*(e.unreachable for e in evaluations), strict=True))),
    )


def bootstrap_means(
    values_RQ: Values,
    user_ids_R: NDArray[np.int64],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Values:
    """Return the means_SQ of `n_resamples` samples of as many users, drawn with replacement.

    The rows of a user under several splits are not independent, so they are drawn together. The
    draws depend on seed and users alone, not on the quantities. With more than `MOST_RESAMPLED`
    users they come from the normal distribution that the means approach (the delta method for a
    ratio of sums), for drawing each user would take minutes.
    """
    users_C, user_R = np.unique(user_ids_R, return_inverse=True)
    n_users, n_quantities = len(users_C), values_RQ.shape[1]
    sums = [np.bincount(user_R, column, n_users) for column in values_RQ.T]
    sums_CQ = np.stack([*sums, np.bincount(user_R, minlength=n_users)], axis=1)
    generator = np.random.default_rng(seed)
    if n_users > MOST_RESAMPLED:
        mean_Q = values_RQ.mean(0)
        rest_CQ = (sums_CQ[:, :-1] - mean_Q * sums_CQ[:, -1:]) / len(values_RQ)
        return generator.multivariate_normal(mean_Q, rest_CQ.T @ rest_CQ, n_resamples)
    means = np.empty((n_resamples, n_quantities))
    step = max(1, N_DRAWS_AT_ONCE // n_users)
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = generator.integers(n_users, size=(n, n_users), dtype=np.int32)
        drawn += np.arange(n, dtype=np.int32)[:, None] * n_users
        times_SC = np.bincount(drawn.ravel(), minlength=n * n_users).reshape(n, n_users)
        totals_SQ = times_SC.astype(np.float64) @ sums_CQ
        means[start : start + n] = totals_SQ[:, :-1] / totals_SQ[:, -1:]
    return means


def percentiles(means_SQ: Values, level: float) -> tuple[Values, Values]:
    """Return the lower and upper ends, one per quantity, that enclose `level` of the resamples."""
    if not 0 < level < 1:
        raise ValueError(f"level of an interval must be between 0 and 1, got {level}")
    low, high = np.quantile(means_SQ, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


@dataclass(frozen=True)
class PairedComparison:
    """The difference of two models' means over the users in common, with its interval.

    The difference is the first model's mean minus the second's; the p-value is two-sided, of the
    hypothesis that it is zero.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    level: float
    n_users: int

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] at "
            f"{self.level:.0%}, p = {self.p_value:.4f}, {self.n_users} users"
        )


def paired_test(
    first: Evaluation | Sequence[Evaluation],
    second: Evaluation | Sequence[Evaluation],
    metric: str = "NDCG@10",
    *,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Test whether one model is better than another on the users in common (paired bootstrap).

    Several evaluations of each, under the same splits (rolling cuts) in the same order, are pooled:
    each (user, split) gives one difference, and users are drawn with all their differences. The
    p-value is twice the smaller share of resamples on either side of zero, at least
    2 / (n_resamples + 1).

    Raises:
        ValueError: other splits, another protocol, or no user in common.
    """
    first = first if isinstance(first, Evaluation) else pool(first)
    second = second if isinstance(second, Evaluation) else pool(second)
    if first.protocol.mask_seen != second.protocol.mask_seen or first.n_items != second.n_items:
        raise ValueError(
            "a paired test needs both models under one protocol, got "
            f"'{first.protocol.describe(first.n_items)}' and "
            f"'{second.protocol.describe(second.n_items)}'"
        )
    n_splits = [len(np.unique(evaluation.split_ids)) for evaluation in (first, second)]
    if n_splits[0] != n_splits[1]:
        raise ValueError(
            "a paired test needs both models under the same splits, got evaluations of "
            f"{n_splits[0]} splits of the first and {n_splits[1]} of the second"
        )
    n_keys = 1 + int(max(first.user_ids.max(initial=0), second.user_ids.max(initial=0)))
    keys_U, rows_of_first, rows_of_second = np.intersect1d(
        first.split_ids * n_keys + first.user_ids,
        second.split_ids * n_keys + second.user_ids,
        assume_unique=True,
        return_indices=True,
    )
    if not len(keys_U):
        raise ValueError("a paired test needs users in common, but the two models share none")
    users_U = keys_U % n_keys
    differences_U = first.values(metric)[rows_of_first] - second.values(metric)[rows_of_second]
    means = bootstrap_means(differences_U[:, None], users_U, n_resamples=n_resamples, seed=seed)
    low, high = percentiles(means, level)
    n_beyond = min((means <= 0).sum(), (means >= 0).sum())
    return PairedComparison(
        metric,
        float(differences_U.mean()),
        float(low[0]),
        float(high[0]),
        min(1.0, 2 * float(n_beyond + 1) / (n_resamples + 1)),
        level,
        len(np.unique(users_U)),
    )
