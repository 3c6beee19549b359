"""Simple models that a learned one must stand beside, under the same protocol."""

from ftmamba.baselines.fitted import Baseline, FittedBaseline
from ftmamba.baselines.registry import BASELINES, GRIDS, make_baseline
from ftmamba.baselines.tune import Tuned, tune

__all__ = [
    "BASELINES",
    "GRIDS",
    "Baseline",
    "FittedBaseline",
    "Tuned",
    "make_baseline",
    "tune",
]
