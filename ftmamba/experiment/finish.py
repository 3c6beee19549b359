"""From a trained and compared model to its checkpoint."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from ftmamba.catalogue import embed_catalogue
from ftmamba.checkpoint import Checkpoint
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Evaluation, Split
from ftmamba.experiment.comparison import Comparison, own_name
from ftmamba.known_users import known_users
from ftmamba.recipe import Recipe
from ftmamba.training.run import Trained
from hub_cards import DataFacts, Figure, ModelCardFacts, ModelFacts, ResultRow, render_model_card

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")
CARD_METRICS = ("NDCG", "HR", "R", "MRR")
LIMITS = (
    "It ranks what resembles the training data: popular items are recommended more often than "
    "their share of tastes.",
    "A value never seen in training is read as unseen, a missing one as missing; neither is an "
    "error, and both say less than a known one.",
    "Item embeddings were made as of one moment; items and popularity after it are unknown to it.",
)


def make_checkpoint(
    recipe: Recipe, tables: Tables, split: Split, trained: Trained, comparison: Comparison
) -> Checkpoint:
    """Gather what `save_checkpoint` writes; the catalogue is as of the test."""
    schema = tables.schema
    catalogue = embed_catalogue(
        trained.model,
        trained.data.catalogue(split.test_time),
        keys=tables.item_keys,
        titles=tables.item_titles,
        as_of=trained.data.as_of if split.test_time is None else split.test_time,
    )
    users = known_users(
        tables.users,
        split.before_test,
        key=schema.users.key,
        columns=[column.name for column in schema.users.raw_columns],
    )
    return Checkpoint(
        model=trained.model,
        extractor=trained.data.extractor,
        catalogue=catalogue,
        users=users,
        card=render_model_card(_card_facts(recipe, tables, split, trained, comparison)),
        results=_results(recipe, split, trained, comparison),
        recipe=recipe.to_dict(),
    )


def _results(
    recipe: Recipe, split: Split, trained: Trained, comparison: Comparison
) -> dict[str, Any]:
    return {
        "split": split.description,
        **comparison.to_dict(),
        "training": {
            "best_epoch": trained.result.best_epoch,
            "best_score": trained.result.best_score,
            "history": trained.result.history,
            "seconds": trained.seconds,
        },
        "seed": recipe.seed,
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def hardware() -> str:
    """Say what this process runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _card_facts(
    recipe: Recipe, tables: Tables, split: Split, trained: Trained, comparison: Comparison
) -> ModelCardFacts:
    config, schema = trained.model.config, tables.schema
    evaluations = comparison.evaluations
    own = evaluations[comparison.own]
    metrics = [f"{name}@{max(recipe.evaluation.k)}" for name in CARD_METRICS]
    groups = {
        name: rows
        for name, part in (("Warm users", "warm"), ("Cold users", "cold"))
        if len(getattr(own, part)) and len(getattr(own, part)) < len(own)
        for rows in [_rows({m: getattr(e, part) for m, e in evaluations.items()}, metrics)]
    }
    return ModelCardFacts(
        name=f"{own_name(trained)} on {recipe.data.name or 'own tables'}",
        repo=recipe.hub_model_id or recipe.output_dir,
        data=DataFacts(
            name=recipe.data.name or "own tables",
            n_users=tables.users.num_rows,
            n_items=tables.items.num_rows,
            n_interactions=len(split.before_test if recipe.evaluation.refit else split.train),
        ),
        model=ModelFacts(
            mixer=config.mixer,
            n_parameters=trained.model.num_parameters(),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            loss=recipe.training.loss,
            seed=recipe.seed,
            train_seconds=trained.seconds,
            hardware=hardware(),
        ),
        user_key=schema.users.key,
        item_key=schema.items.key,
        user_columns=trained.data.extractor.user_columns,
        item_columns=trained.data.extractor.item_columns,
        example_record=_example_record(recipe, tables),
        split=split.description,
        protocol=own.protocol.describe(own.n_items),
        metrics=metrics,
        results=_rows(evaluations, metrics),
        groups=groups,
        limits=LIMITS,
    )


def _example_record(recipe: Recipe, tables: Tables) -> Mapping[str, Any]:
    if recipe.examples.record:
        return recipe.examples.record
    record = tables.user_record(0)
    return {column.name: record[column.name] for column in tables.schema.users.raw_columns}


def _rows(evaluations: Mapping[str, Evaluation], metrics: list[str]) -> list[ResultRow]:
    return [
        ResultRow(
            name,
            {metric: Figure(one.mean(metric), *one.interval(metric)) for metric in metrics},
        )
        for name, one in evaluations.items()
    ]
