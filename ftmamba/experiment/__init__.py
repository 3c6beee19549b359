"""From a recipe to a checkpoint with its results: training, comparison, saving, telling."""

from ftmamba.experiment.comparison import Comparison, check_rivals_and_baselines, compare
from ftmamba.experiment.cost import measured_cost
from ftmamba.experiment.examples import tell_examples
from ftmamba.experiment.finish import make_checkpoint
from ftmamba.experiment.user_groups import check_group_columns

__all__ = [
    "Comparison",
    "check_group_columns",
    "check_rivals_and_baselines",
    "compare",
    "make_checkpoint",
    "measured_cost",
    "tell_examples",
]
