"""Splits, protocol, metrics, intervals and tests: what is asked of every model, in one place."""

from ftmamba.evaluation.comparison import PairedComparison, paired_test
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.protocol import EmbeddingScorer, Protocol, Scorer
from ftmamba.evaluation.report import results_table
from ftmamba.evaluation.result import Evaluation, pool
from ftmamba.evaluation.splits import Split, make_split, rolling_cuts

__all__ = [
    "EmbeddingScorer",
    "Evaluation",
    "PairedComparison",
    "Protocol",
    "Scorer",
    "Split",
    "evaluate",
    "make_split",
    "paired_test",
    "pool",
    "results_table",
    "rolling_cuts",
]
