"""Every baseline by its name, and the choice of its options on validation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from ftmamba.evaluation.baselines import (
    EASE,
    IALS,
    PCTM,
    Baseline,
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
)
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.named import make_named
from ftmamba.evaluation.protocol import Protocol
from ftmamba.evaluation.splits import Split

BASELINES: Mapping[str, Callable[..., Baseline]] = {
    "popularity": Popularity,
    "popularity-7d": partial(RecentPopularity, days=7),
    "popularity-14d": partial(RecentPopularity, days=14),
    "item-knn": ItemKNN,
    "ease": EASE,
    "ials": IALS,
    "markov": Markov,
    "pctm": PCTM,
}

PCTM_SHAPES: tuple[Mapping[str, Any], ...] = (
    {"max_distance": 20, "distance_power": 1.0, "n_recent": 7, "recent_share": 0.8},
    {"max_distance": 10, "distance_power": 0.5, "n_recent": 50, "recent_share": 1.0},
)
"""How far transitions and the history reach: for long histories, and for short ones."""

GRIDS: Mapping[str, tuple[Baseline, ...]] = {
    "item-knn": (ItemKNN(50, 0), ItemKNN(100, 10), ItemKNN(200, 50), ItemKNN(400, 100)),
    "ease": tuple(EASE(regularization) for regularization in (20, 50, 100, 200, 500, 1000, 2000)),
    "ials": tuple(
        IALS(n_factors, regularization, alpha)
        for n_factors, regularization, alpha in product(
            (32, 64, 128), (0.1, 1.0, 10.0, 30.0), (1.0, 5.0, 20.0)
        )
    ),
    "markov": (Markov(), Markov((1.0, 0.5)), Markov((1.0, 0.5, 0.25))),
    "pctm": tuple(
        PCTM(tau=tau, popularity_weight=beta, **shape)
        for shape, tau, beta in product(PCTM_SHAPES, (150.0, 1_500.0, 11_250.0), (-0.4, -0.04))
    ),
}
"""What `tune` chooses from; a baseline without a grid has no options worth tuning."""


def make_baseline(name: str, options: Mapping[str, Any] | None = None) -> Baseline:
    """Build the baseline of a recipe's name and options.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    return make_named("baseline", BASELINES, name, options or {})


class Tuned(NamedTuple):
    """The first of the best candidates, its metric on validation, and those of all candidates."""

    best: Baseline
    score: float
    scores: tuple[float, ...]


def tune(
    candidates: Sequence[Baseline],
    split: Split,
    *,
    protocol: Protocol | None = None,
    metric: str = "NDCG@10",
) -> Tuned:
    """Fit every candidate on `split.train` and keep the best on `split.validation`.

    The test part is not used. Fit the best again on `split.before_test` before its test.
    """
    if not candidates:
        raise ValueError("there is nothing to tune: the grid is empty; give at least one candidate")
    if not len(split.validation):
        raise ValueError(
            f"tuning needs validation interactions, but the split '{split.description}' has none; "
            "raise its validation_fraction"
        )
    scores = tuple(
        evaluate(
            candidate.fit(split.train, as_of=split.validation_time),
            test=split.validation,
            seen=split.train,
            protocol=protocol,
        ).mean(metric)
        for candidate in candidates
    )
    best = max(range(len(scores)), key=scores.__getitem__)
    return Tuned(candidates[best], scores[best], scores)
