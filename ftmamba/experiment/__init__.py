"""From a recipe to a checkpoint with its results: training, comparison, saving, telling."""

from ftmamba.experiment.comparison import Comparison, check_rivals_and_baselines, compare
from ftmamba.experiment.examples import tell_examples
from ftmamba.experiment.finish import make_checkpoint

__all__ = [
    "Comparison",
    "check_rivals_and_baselines",
    "compare",
    "make_checkpoint",
    "tell_examples",
]
