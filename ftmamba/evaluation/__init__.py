"""Splits, protocol, metrics, intervals, tests and baselines: how every model is judged."""

from ftmamba.evaluation.baselines import make_baseline, tune
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.protocol import EmbeddingScorer, Protocol
from ftmamba.evaluation.report import Report
from ftmamba.evaluation.result import Evaluation, paired_test, pool
from ftmamba.evaluation.splits import Split, make_split, rolling_cuts

__all__ = [
    "EmbeddingScorer",
    "Evaluation",
    "Protocol",
    "Report",
    "Split",
    "evaluate",
    "make_baseline",
    "make_split",
    "paired_test",
    "pool",
    "rolling_cuts",
    "tune",
]
