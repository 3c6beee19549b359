"""Recipes: every value that rebuilds a run, read from YAML and from flags."""

from ftmamba.recipe.files import (
    configuration_folder,
    load_preset,
    read_recipe,
    shipped_names,
)
from ftmamba.recipe.flags import load_recipe
from ftmamba.recipe.sections import (
    DataRecipe,
    EvaluationRecipe,
    ExamplesRecipe,
    ModelRecipe,
    Recipe,
    SplitRecipe,
    TrainingRecipe,
)

__all__ = [
    "DataRecipe",
    "EvaluationRecipe",
    "ExamplesRecipe",
    "ModelRecipe",
    "Recipe",
    "SplitRecipe",
    "TrainingRecipe",
    "configuration_folder",
    "load_preset",
    "load_recipe",
    "read_recipe",
    "shipped_names",
]
