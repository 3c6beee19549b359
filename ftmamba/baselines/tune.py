"""Choosing a baseline's options on validation, so that it loses fairly or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftmamba.baselines.fitted import Baseline
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.protocol import Protocol
from ftmamba.evaluation.splits import Split


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search.

    Attributes:
        best: the candidate of the highest score, the earlier of equals.
        score: its metric on validation.
        scores: of every candidate, in the order given.
    """

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

    The test part is not touched. Fit the best again on `split.before_test` before its test.
    """
    if not candidates:
        raise ValueError("there is nothing to tune: the grid has no candidates; give at least one")
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
