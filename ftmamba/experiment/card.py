"""A model card from what a run has written down: its results, its recipe, its columns.

A finished run and a checkpoint read from disk go the same way, so a card can be made anew.
"""

from collections.abc import Mapping
from typing import Any

from ftmamba.data.named_datasets import LICENCES
from ftmamba.experiment.card_examples import HANDLER_FILE, endpoint_facts
from ftmamba.experiment.card_results import (
    measured_limits,
    result_parts,
    result_rows,
    user_groups,
)
from ftmamba.experiment.data_facts import of_column
from ftmamba.recipe import Recipe, TrainingRecipe, to_plain
from hub_cards import (
    ColumnFacts,
    DataFacts,
    ModelCardFacts,
    ModelFacts,
    TrainingFacts,
)
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

CARD_METRICS = ("NDCG", "HR", "R", "MRR")
TITLES = {"movielens-100k": "MovieLens-100K"}
TERMS = {
    "movielens-100k": LICENCES["movielens-100k"].removesuffix("."),
    "checkerboard": "made up by this project, free to use",
}
LIMITS = (
    "A value never seen in training is read as unseen, a missing one as missing; neither is an "
    "error, and both say less than a known one.",
    "Item embeddings were made as of one moment; items and popularity after it are unknown to it.",
)
ALWAYS_SHOWN = ("loss", "batch_size", "num_epochs", "learning_rate", "schedule", "weight_decay")
NEVER_SHOWN = ("resume_from_checkpoint", "with_tracking", "report_to", "log_every_steps",
               "checkpointing_steps", "checkpoints_total_limit")  # fmt: skip
"""Training options that leave the trained model as it is."""
UNREADABLE = ("edges", "event_scales")
"""Fitted fields of a column that say little to a reader."""


def card_facts(
    results: Mapping[str, Any],
    recipe: Recipe,
    *,
    config: Any,
    extractor: FTMambaFeatureExtractor,
    example: Mapping[str, Any],
    code: Mapping[str, str],
    curves: str = "",
) -> ModelCardFacts:
    """Gather the facts of a card.

    Args:
        results: what `all_results.json` holds.
        recipe: of the run.
        config: the `FTMambaConfig` of the model.
        extractor: fitted, of the run.
        example: a raw user record.
        code: file of the remote code to its SHA-256.
        curves: file name of the learning curves, where they were drawn.

    Raises:
        ValueError: the results hold no model's figures.
    """
    models: Mapping[str, Any] = results.get("models", {})
    if not models:
        raise ValueError(
            "all_results.json holds no model's figures; train again, or evaluate the checkpoint"
        )
    own = next(iter(models.values()))
    k = max(recipe.evaluation.k)
    with_catalogue = recipe.hub_catalogue or not recipe.push_to_hub
    metrics = [f"{name}@{k}" for name in CARD_METRICS]
    tables = results.get("data", {})
    columns = {
        tower: [column_facts(tables, f"{tower}s", column) for column in of_tower]
        for tower, of_tower in (("user", extractor.user_columns), ("item", extractor.item_columns))
    }
    return ModelCardFacts(
        name=recipe.card.title or f"{next(iter(models))} on {data_name(recipe)}",
        repo=recipe.hub_model_id or recipe.output_dir,
        data=_data_facts(results, recipe),
        model=_model_facts(results, config),
        training=_training_facts(results, recipe, curves),
        user_key=extractor.user_key,
        item_key=extractor.item_key,
        user_columns=columns["user"],
        item_columns=columns["item"],
        example_record=example,
        split=results.get("split", "not recorded"),
        protocol=own["protocol"],
        metrics=metrics,
        results=result_rows(results, metrics),
        parts=result_parts(models, metrics),
        groups=user_groups(results, recipe.evaluation.selection_metric),
        limits=[*measured_limits(models, k), *LIMITS],
        code=code if with_catalogue else {n: c for n, c in code.items() if n != HANDLER_FILE},
        endpoint=endpoint_facts(example) if with_catalogue else None,
        with_catalogue=with_catalogue,
        licence=recipe.card.licence,
        citation=recipe.card.citation,
    )


def data_name(recipe: Recipe) -> str:
    """Return the name of the data for people."""
    return TITLES.get(recipe.data.name, recipe.data.name) or "own tables"


def data_terms(recipe: Recipe) -> str:
    """Return what the data's terms allow; empty where nobody said."""
    return (recipe.card.data_licence or TERMS.get(recipe.data.name, "")).removesuffix(".")


def _data_facts(results: Mapping[str, Any], recipe: Recipe) -> DataFacts:
    data = results.get("data", {})
    interactions = data.get("interactions", {})
    parts = data.get("split", {})
    n_fitted = parts.get("train", 0) + recipe.evaluation.refit * parts.get("validation", 0)
    period = (interactions["first"], interactions["last"]) if "first" in interactions else ()
    own = next(iter(results["models"].values()))
    return DataFacts(
        name=data_name(recipe),
        n_users=data.get("users", {}).get("rows", own["n_users"]),
        n_items=data.get("items", {}).get("rows", own["n_items"]),
        n_interactions=n_fitted,
        parts=parts,
        period=period,
        hub_id=recipe.card.data_hub_id,
        licence=data_terms(recipe),
    )


def column_facts(tables: Mapping[str, Any], table: str, column: Mapping[str, Any]) -> ColumnFacts:
    """Return what a card says of a column.

    Args:
        tables: what `describe_tables` returns.
        table: `users` or `items`.
        column: `Column.to_dict` of it.
    """
    facts = of_column(tables, table, column["name"])
    quantiles = facts.get("quantiles")
    return ColumnFacts(
        {key: value for key, value in column.items() if key not in UNREADABLE},
        facts.get("missing"),
        facts.get("distinct"),
        None if quantiles is None else (quantiles[0], quantiles[-1]),
    )


def _model_facts(results: Mapping[str, Any], config: Any) -> ModelFacts:
    return ModelFacts(
        mixer=config.mixer,
        n_parameters=results.get("n_parameters", 0),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        embedding_size=config.projection_size,
    )


def _training_facts(results: Mapping[str, Any], recipe: Recipe, curves: str) -> TrainingFacts:
    cost = results.get("cost") or {}
    training = results.get("training", {})
    options = {"preset": recipe.model.preset, **recipe.model.overrides}
    usual = to_plain(TrainingRecipe())
    options |= {
        name: value
        for name, value in to_plain(recipe.training).items()
        if name in ALWAYS_SHOWN or (value != usual[name] and name not in NEVER_SHOWN)
    }
    return TrainingFacts(
        options=options,
        best_epoch=training.get("best_epoch", 0),
        seed=recipe.seed,
        seeds=_seeds(recipe),
        seconds=cost.get("seconds") or training.get("seconds", 0.0),
        hardware=cost.get("hardware") or results.get("hardware", "unknown hardware"),
        versions=results.get("versions", {}),
        n_processes=cost.get("n_processes", 1),
        peak_memory=cost.get("peak_memory"),
        energy=cost.get("energy"),
        emissions=cost.get("emissions"),
        country=cost.get("country", ""),
        curves=curves,
    )


def _seeds(recipe: Recipe) -> dict[str, int]:
    options = recipe.split.options(recipe.seed)
    split = {"split": int(options["seed"])} if "seed" in options else {}
    return {**split, "bootstrap": 0}
