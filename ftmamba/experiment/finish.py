"""From a trained and compared model to its checkpoint."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ftmamba.checkpoint import CURVES_FILE, Checkpoint
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Split
from ftmamba.experiment.card import card_facts
from ftmamba.experiment.card_examples import code_hashes, typical_record
from ftmamba.experiment.comparison import Comparison
from ftmamba.experiment.cost import Cost, hardware
from ftmamba.experiment.data_facts import describe_split, describe_tables
from ftmamba.experiment.user_groups import group_figures
from ftmamba.known_users import known_users
from ftmamba.recipe import Recipe
from ftmamba.table_embedding import embed_catalogue
from ftmamba.training.run import Trained
from hub_cards import draw_learning_curves, render_model_card

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")


def make_checkpoint(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    trained: Trained,
    comparison: Comparison,
    *,
    cost: Cost | None = None,
) -> Checkpoint:
    """Gather what `save_checkpoint` writes; the catalogue is as of the test.

    Args:
        recipe: of the run.
        tables: what it read.
        split: how they were divided.
        trained: the model.
        comparison: its figures and those of the others.
        cost: what training cost; None knows its time alone.
    """
    schema = tables.schema
    catalogue = embed_catalogue(
        trained.model,
        trained.data.catalogue_rows(split.test_time),
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
    results = {
        **_results(recipe, trained, comparison),
        **_facts_of_data(recipe, tables, split, comparison),
        "cost": None if cost is None else cost.to_dict(),
    }
    pictures = learning_curves(results, recipe)
    facts = card_facts(
        results,
        recipe,
        config=trained.model.config,
        extractor=trained.data.extractor,
        example=recipe.examples.record or typical_record(trained.data.extractor, results["data"]),
        code=code_hashes(),
        curves=next(iter(pictures), ""),
    )
    return Checkpoint(
        model=trained.model,
        extractor=trained.data.extractor,
        catalogue=catalogue,
        users=users,
        card=render_model_card(facts),
        results=results,
        recipe=recipe.to_dict(),
        pictures=pictures,
    )


def learning_curves(results: Mapping[str, Any], recipe: Recipe) -> dict[str, bytes]:
    """Return the picture of the learning curves by its file name; empty without matplotlib."""
    training = results.get("training", {})
    picture = draw_learning_curves(
        training.get("history", []),
        metric=recipe.evaluation.selection_metric,
        best_epoch=training.get("best_epoch"),
    )
    return {} if picture is None else {CURVES_FILE: picture}


def _results(recipe: Recipe, trained: Trained, comparison: Comparison) -> dict[str, Any]:
    return {
        **comparison.to_dict(),
        "training": {
            "best_epoch": trained.result.best_epoch,
            "best_score": trained.result.best_score,
            "history": trained.result.history,
            "seconds": trained.seconds,
        },
        "n_parameters": trained.model.num_parameters(),
        "seed": recipe.seed,
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _facts_of_data(
    recipe: Recipe, tables: Tables, split: Split, comparison: Comparison
) -> dict[str, Any]:
    return {
        "split": split.description,
        "data": {**describe_tables(tables), "split": describe_split(split)},
        "user_groups": group_figures(
            comparison.evaluations,
            tables,
            columns=recipe.evaluation.user_groups,
            metric=comparison.metric,
        ),
    }
