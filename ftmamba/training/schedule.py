"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

from ftmamba.recipe import TrainingRecipe


def learning_rate_at(step: int, n_steps: int, recipe: TrainingRecipe) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule down to zero.

    Args:
        step: optimizer steps taken before this one.
        n_steps: optimizer steps of the whole schedule.
        recipe: the highest rate, the warm-up's share and the schedule.
    """
    n_warmup = round(n_steps * recipe.warmup_fraction)
    if step < n_warmup:
        return recipe.learning_rate * (step + 1) / n_warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - progress)
    return recipe.learning_rate * (1 + math.cos(math.pi * progress)) / 2
