"""Splits, protocol, metrics, intervals, tests and baselines: how every model is judged."""

from ftmamba.evaluation.baselines import make_baseline, tune
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.protocol import EmbeddingScorer, Protocol
from ftmamba.evaluation.result import Evaluation, paired_test, pool, results_table
from ftmamba.evaluation.splits import Split, make_split, rolling_cuts

__all__ = [
    "EmbeddingScorer",
    "Evaluation",
    "Protocol",
    "Split",
    "evaluate",
    "make_baseline",
    "make_split",
    "paired_test",
    "pool",
    "results_table",
    "rolling_cuts",
    "tune",
]
