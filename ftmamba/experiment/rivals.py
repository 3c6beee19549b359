"""Other networks under the same recipe: the same data, split, loop, loss and budget."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate import Accelerator

from ftmamba.data.histories import histories_of
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables
from ftmamba.evaluation import EmbeddingScorer, Split
from ftmamba.recipe import (
    ModelRecipe,
    Recipe,
    TrainingRecipe,
    build,
    lay_over,
    load_preset,
    to_plain,
)
from ftmamba.training.run import Trained, embedding_scorer, train
from modeling_ftmamba.columns import Column, near
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig

logger = logging.getLogger(__name__)

COLUMNS = ("all", "ids")


@dataclass(frozen=True)
class Rival:
    """A network to be compared with.

    Attributes:
        name: its row in the table of results.
        preset: its architecture.
        overrides: fields that replace the preset's.
        training: options that replace the recipe's.
        columns: `all` of the recipe's, or only the `ids` of users and items.
    """

    name: str
    preset: str
    overrides: Mapping[str, Any]
    training: Mapping[str, Any]
    columns: str = "all"

    def __post_init__(self) -> None:
        if self.columns not in COLUMNS:
            raise ValueError(
                f"rival {self.name!r}: columns must be one of {', '.join(COLUMNS)}, "
                f"got {self.columns!r}{near(self.columns, COLUMNS)}"
            )


def parse_rivals(values: Mapping[str, Any]) -> list[Rival]:
    """Read the recipe's `evaluation.rivals`.

    Raises:
        ValueError: an unknown key, or no preset.
    """
    known = ("preset", "overrides", "training", "columns")
    rivals = []
    for name, options in values.items():
        for key in options:
            if key not in known:
                raise ValueError(
                    f"rival {name!r} has an unknown key {key!r}{near(key, known)}; "
                    f"it may have: {', '.join(known)}"
                )
        if "preset" not in options:
            raise ValueError(f"rival {name!r} needs a preset, e.g. preset: ft-transformer-small")
        filled = {"overrides": {}, "training": {}, **options}
        rivals.append(Rival(name=name, **filled))
    return rivals


def rival_recipe(rival: Rival, recipe: Recipe) -> Recipe:
    """Return the recipe with the rival's network and training options in place of its own.

    Raises:
        FileNotFoundError: there is no such preset.
        ValueError: an unknown field or option, or a value that it cannot have.
    """
    FTMambaConfig(**{**load_preset(rival.preset), **rival.overrides})
    own = {**to_plain(recipe.training), "checkpointing_steps": "", "resume_from_checkpoint": ""}
    training = build(
        TrainingRecipe,
        lay_over(TrainingRecipe, own, rival.training),
        f"rivals.{rival.name}.training",
    )
    model = ModelRecipe(rival.preset, dict(rival.overrides))
    return replace(recipe, model=model, training=training)


def train_rival(
    rival: Rival, recipe: Recipe, tables: Tables, split: Split, accelerator: Accelerator
) -> EmbeddingScorer:
    """Train a rival as the recipe trains its model; return its scores as of the test."""
    logger.info("rival: %s", rival.name)
    recipe = rival_recipe(rival, recipe)
    if rival.columns == "ids":
        tables = replace(tables, schema=ids_only(tables.schema))
    trained = train(recipe, tables, split, accelerator)
    return held_out_scorer(trained, split)


def held_out_scorer(trained: Trained, split: Split) -> EmbeddingScorer:
    """Embed the users of the test part and, as of the test, every item."""
    user_ids = np.unique(split.test.user_ids)
    histories = None
    if trained.data.histories is not None:
        histories = histories_of(split.before_test)
    return embedding_scorer(
        trained.model, trained.data, split.test_time, user_ids=user_ids, histories=histories
    )


def ids_only(schema: Schema) -> Schema:
    """Return the schema of a model that knows users and items by their keys alone."""
    users, items = (
        replace(table, columns=(Column(table.key, "categorical"),))
        for table in (schema.users, schema.items)
    )
    return replace(schema, users=users, items=items)
