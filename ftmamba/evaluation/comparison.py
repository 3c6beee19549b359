"""Whether one model is better than another on the same users.

Shapes: U users in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftmamba.evaluation.bootstrap import N_RESAMPLES, bootstrap_means, percentiles
from ftmamba.evaluation.result import Evaluation, pool


@dataclass(frozen=True)
class PairedComparison:
    """The difference of two models' means over the same users.

    Attributes:
        metric: which metric.
        difference: mean of the first less that of the second.
        low: lower end of the interval of the difference.
        high: its upper end.
        p_value: two-sided, of the hypothesis that the difference is zero.
        level: of the interval.
        n_users: users in common.
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
    """Test two models on the users they share, by the paired bootstrap.

    Several evaluations of each, under the same splits (rolling cuts) in the same order, are pooled:
    each (user, split) gives one difference, and users are drawn with all their differences. The
    p-value is twice the smaller share of resamples on either side of zero, at least
    2 / (n_resamples + 1).

    Raises:
        ValueError: other splits, another protocol, or no user in common.
    """
    first = first if isinstance(first, Evaluation) else pool(first)
    second = second if isinstance(second, Evaluation) else pool(second)
    _check(first, second)
    n_keys = 1 + int(max(first.user_ids.max(initial=0), second.user_ids.max(initial=0)))
    keys_U, rows_of_first, rows_of_second = np.intersect1d(
        first.split_ids * n_keys + first.user_ids,
        second.split_ids * n_keys + second.user_ids,
        assume_unique=True,
        return_indices=True,
    )
    if not len(keys_U):
        raise ValueError("a paired test needs users in common, but the two models share none")
    differences_U = first.values(metric)[rows_of_first] - second.values(metric)[rows_of_second]
    means = bootstrap_means(
        differences_U[:, None], keys_U % n_keys, n_resamples=n_resamples, seed=seed
    )
    low, high = percentiles(means, level)
    n_beyond = min((means <= 0).sum(), (means >= 0).sum())
    return PairedComparison(
        metric,
        float(differences_U.mean()),
        float(low[0]),
        float(high[0]),
        min(1.0, 2 * float(n_beyond + 1) / (n_resamples + 1)),
        level,
        len(np.unique(keys_U % n_keys)),
    )


def _check(first: Evaluation, second: Evaluation) -> None:
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
