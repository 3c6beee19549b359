"""What a model card shows, gathered from a checkpoint: its results, its recipe, its columns.

The same code serves a finished run and a checkpoint read from a folder: a card can be made again.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import modeling_ftmamba
from ftmamba.checkpoint import Checkpoint
from ftmamba.data.named_datasets import LICENCES
from ftmamba.recipe import Recipe, TrainingRecipe, recipe_from_dict, to_plain
from ftmamba.results import Cost
from hub_cards.contents import HANDLER_FILE, code_files
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

CARD_METRICS = ("NDCG", "HR", "R", "MRR")
PARTS = {"warm": "Users with earlier interactions", "cold": "Users without any"}
DATA_NAMES = {"movielens-100k": "MovieLens-100K"}
DATA_TERMS = {
    "movielens-100k": LICENCES["movielens-100k"].removesuffix("."),
    "checkerboard": "made up by this project, free to use",
}
ALWAYS_SHOWN = ("loss", "batch_size", "num_epochs", "learning_rate", "schedule", "weight_decay")
NEVER_SHOWN = ("resume_from_checkpoint", "with_tracking", "report_to", "log_every_steps",
               "checkpointing_steps", "checkpoints_total_limit")  # fmt: skip
"""Training options that leave the trained model as it is."""
UNREADABLE = ("edges", "event_scales")
"""Fitted fields of a column that mean little to a reader."""


@dataclass(frozen=True)
class Figure:
    """A metric's mean over the test users, with its confidence interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ResultRow:
    """One model under the card's protocol: metric name, such as "NDCG@10", to its figure.

    `difference` is the card's model less this one, paired by user; None in the model's own row.
    """

    name: str
    figures: Mapping[str, Figure]
    difference: Figure | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class GroupRow:
    """The test users who share a value: the model's figure, and the strongest other model's."""

    value: str
    n_users: int
    own: Figure
    other: Figure | None = None


@dataclass(frozen=True)
class UserGroups:
    """The test users by the values of one column; `other_name` is of the strongest other model."""

    column: str
    metric: str
    rows: Sequence[GroupRow]
    other_name: str = ""

    def below(self, average: float) -> list[GroupRow]:
        """Return the groups whose interval lies below the average of all users."""
        return [row for row in self.rows if row.own.high is not None and row.own.high < average]


@dataclass(frozen=True)
class ColumnFacts:
    """One column of a tower (`Column.to_dict`), with what was counted in its table.

    `missing` is the share of rows without a value, `middle` the middle 90 % of its numbers.
    """

    column: Mapping[str, Any]
    missing: float | None = None
    distinct: int | None = None
    middle: tuple[float, float] | None = None


@dataclass(frozen=True)
class DataFacts:
    """What the model was trained on; `n_interactions` of all were read by training.

    `period` is the first and last day (empty without times), `licence` one sentence.
    """

    name: str
    n_users: int
    n_items: int
    n_interactions: int
    parts: Mapping[str, int] = field(default_factory=dict)
    period: tuple[str, str] | tuple[()] = ()
    hub_id: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ModelCardFacts:
    """All that a model card shows.

    Attributes:
        repo: Hub id or folder that the examples load, at `revision`.
        options: of the model and of training, name to value.
        example_record: a raw user record.
        split: how training and test were divided, one sentence.
        protocol: candidates, masking, averaging, one sentence.
        metrics: names in the order of the columns of the table of results.
        results: the model's own row first, then every other model's.
        parts: further tables under the same columns, such as "Users without any", to their rows.
        groups: the test users by columns that the recipe names.
        limits: what the model is not good for, one sentence each.
        code: file of the remote code to its SHA-256.
        curves: file name of the picture of the learning curves; empty without.
        with_catalogue: whether the repository holds the items; most examples need them.
        licence: of the weights, as the Hub spells it.
        citation: BibTeX of whoever made this model; empty leaves only the paper's.
    """

    name: str
    repo: str
    config: Any
    n_parameters: int
    data: DataFacts
    options: Mapping[str, Any]
    best_epoch: int
    seeds: Mapping[str, int]
    cost: Cost
    user_key: str
    item_key: str
    user_columns: Sequence[ColumnFacts]
    item_columns: Sequence[ColumnFacts]
    example_record: Mapping[str, Any]
    split: str
    protocol: str
    metrics: Sequence[str]
    results: Sequence[ResultRow]
    parts: Mapping[str, Sequence[ResultRow]] = field(default_factory=dict)
    groups: Sequence[UserGroups] = ()
    limits: Sequence[str] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    curves: str = ""
    with_catalogue: bool = True
    revision: str = "main"
    licence: str = "apache-2.0"
    citation: str = ""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a model card needs the model's results, got none; evaluate it first")
        for row in (*self.results, *(row for rows in self.parts.values() for row in rows)):
            for metric in self.metrics:
                if metric not in row.figures:
                    raise ValueError(
                        f"the results of {row.name!r} lack {metric!r}; "
                        f"they have: {', '.join(row.figures)}"
                    )
                figure = row.figures[metric]
                numbers = (figure.value, figure.low, figure.high)
                if not all(number is None or math.isfinite(number) for number in numbers):
                    raise ValueError(
                        f"{metric} of {row.name!r} must be a finite number, got {figure}; "
                        "evaluate again before writing a card"
                    )

    @property
    def own(self) -> ResultRow:
        """The row of the card's own model."""
        return self.results[0]

    @property
    def published_keys(self) -> list[str]:
        """The keys that are also columns: their vocabulary lists every value of training."""
        columns = (*self.user_columns, *self.item_columns)
        names = {each.column["name"] for each in columns}
        return [key for key in (self.user_key, self.item_key) if key in names]


def card_facts(
    checkpoint: Checkpoint, *, folder: Path | None = None, curves: str = ""
) -> ModelCardFacts:
    """Gather the facts of a checkpoint's card.

    Args:
        checkpoint: with its recipe and results.
        folder: of the checkpoint; None for one that is not saved yet.
        curves: file name of the learning curves, where they were drawn.

    Raises:
        ValueError: the checkpoint has no recipe, or its results lack figures.
    """
    if not checkpoint.recipe:
        raise ValueError("the checkpoint has no recipe.yaml, so no card can be made of it")
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    results, extractor = checkpoint.results, checkpoint.extractor
    models: Mapping[str, Any] = results.get("models", {})
    if not models:
        raise ValueError(
            "all_results.json holds no model's figures; train again, or evaluate the checkpoint"
        )
    own = next(iter(models.values()))
    k = max(recipe.evaluation.k)
    with_catalogue = recipe.hub_catalogue or not recipe.push_to_hub
    metrics = [f"{name}@{k}" for name in CARD_METRICS]
    tables, training = results.get("data", {}), results.get("training", {})
    differences = results.get("differences", {})
    code = code_hashes(folder)
    blend = results.get("blend")
    split_options = recipe.split.options(recipe.seed)
    seeds = {"split": int(split_options["seed"])} if "seed" in split_options else {}
    return ModelCardFacts(
        name=recipe.card.title or f"{next(iter(models))} on {data_name(recipe)}",
        repo=recipe.hub_model_id or str(folder or recipe.output_dir),
        config=checkpoint.model.config,
        n_parameters=results.get("n_parameters", 0),
        data=_data_facts(results, recipe),
        options={**_options(recipe), **({"blend": blend["words"]} if blend else {})},
        best_epoch=training.get("best_epoch", 0),
        seeds={"run": recipe.seed, **seeds, "bootstrap": 0},
        cost=_cost(results),
        user_key=extractor.user_key,
        item_key=extractor.item_key,
        user_columns=[column_facts(tables, "users", one) for one in extractor.user_columns],
        item_columns=[column_facts(tables, "items", one) for one in extractor.item_columns],
        example_record=example_record(checkpoint),
        split=results.get("split", "not recorded"),
        protocol=own["protocol"],
        metrics=metrics,
        results=[
            ResultRow(
                name,
                _figures(model, metrics),
                difference=None
                if name not in differences
                else Figure(*(differences[name][key] for key in ("difference", "low", "high"))),
                seconds=results.get("seconds", {}).get(name),
                note=results.get("options", {}).get(name, ""),
            )
            for name, model in models.items()
        ],
        parts={
            f"{title} ({own[part]['n_users']:,})": [
                ResultRow(name, _figures(model[part], metrics))
                for name, model in models.items()
                if part in model
            ]
            for part, title in PARTS.items()
            if part in own
        },
        groups=[
            _user_groups(column, rows, recipe.evaluation.selection_metric)
            for column, rows in results.get("user_groups", {}).items()
            if rows
        ],
        limits=measured_limits(models, k),
        code=code if with_catalogue else {n: c for n, c in code.items() if n != HANDLER_FILE},
        versions=results.get("versions", {}),
        curves=curves,
        with_catalogue=with_catalogue,
        licence=recipe.card.licence,
        citation=recipe.card.citation,
    )


def data_name(recipe: Recipe) -> str:
    """Return the name of the data for people."""
    return DATA_NAMES.get(recipe.data.name, recipe.data.name) or "own tables"


def data_terms(recipe: Recipe) -> str:
    """Return what the data's terms allow; empty where the recipe does not say."""
    return (recipe.card.data_licence or DATA_TERMS.get(recipe.data.name, "")).removesuffix(".")


def column_facts(tables: Mapping[str, Any], table: str, column: Mapping[str, Any]) -> ColumnFacts:
    """Return the facts of a column."""
    facts = tables.get(table, {}).get("columns", {}).get(column["name"], {})
    quantiles = facts.get("quantiles")
    return ColumnFacts(
        {key: value for key, value in column.items() if key not in UNREADABLE},
        facts.get("missing"),
        facts.get("distinct"),
        None if quantiles is None else (quantiles[0], quantiles[-1]),
    )


def code_hashes(folder: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of each Python file that is published with a checkpoint.

    Without a folder these are the files of `modeling_ftmamba`, which a new checkpoint gets. Pushing
    adds the handler where the folder has none.
    """
    source = folder or Path(modeling_ftmamba.__path__[0])
    names = code_files(folder) if folder else {path.name for path in source.glob("*.py")}
    code = {name: (source / name).read_bytes() for name in names - {"__init__.py"}}
    code.setdefault(HANDLER_FILE, (files("hub_cards") / HANDLER_FILE).read_bytes())
    return {name: hashlib.sha256(code[name]).hexdigest() for name in sorted(code)}


def example_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the record that a card or page shows: the recipe's, or a made-up typical one."""
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    tables = checkpoint.results.get("data", {})
    return dict(recipe.examples.record) or typical_record(checkpoint.extractor, tables)


def typical_record(extractor: FTMambaFeatureExtractor, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a made-up user of the most frequent values, so that no person's record is shown."""
    record: dict[str, Any] = {}
    columns = tables.get("users", {}).get("columns", {})
    for column in extractor.columns("user"):
        if column.name == extractor.user_key:
            continue
        quantiles = columns.get(column.name, {}).get("quantiles")
        if column.kind == "numeric" and quantiles:
            median = quantiles[len(quantiles) // 2]
            record[column.name] = int(median) if median == int(median) else median
        elif column.kind in ("categorical", "categories"):
            frequent = extractor.known_values("user", column.name)[:1]
            if frequent:
                record[column.name] = frequent if column.kind == "categories" else frequent[0]
    return record


def measured_limits(models: Mapping[str, Any], k: int) -> list[str]:
    """Return the limits that the figures show: popularity bias, users without interactions."""
    name, own = next(iter(models.items()))
    limits = []
    coverages = {
        other: model["metrics"][f"coverage@{k}"]
        for other, model in models.items()
        if f"coverage@{k}" in model["metrics"]
    }
    coverage = coverages.pop(name, None)
    if coverage is not None:
        widest = max(coverages, key=coverages.__getitem__, default="")
        beside = f" ({widest}: {100 * coverages[widest]:.1f} %)" if widest else ""
        rank = own["metrics"].get(f"popularity_rank@{k}")
        ranked = (
            f", and the average recommended item is number {rank:.0f} of {own['n_items']:,} by "
            "popularity"
        )
        limits.append(
            f"It favours popular items: the top-{k} lists of all test users together contain "
            f"{100 * coverage:.1f} % of the catalogue{beside}{ranked if rank is not None else ''}."
        )
    if "cold" in own and "warm" in own:
        metric = f"NDCG@{k}"
        warm, cold = (own[part]["metrics"][metric] for part in ("warm", "cold"))
        limits.append(
            f"For users without interactions only the columns are known: {metric} is {cold:.3f} "
            f"for the {own['cold']['n_users']} cold test users and {warm:.3f} for the "
            f"{own['warm']['n_users']} warm ones. These are different users with different test "
            "items, so compare models within a group, not the groups."
        )
    return limits


def _figures(model: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Figure]:
    intervals = model.get("intervals", {})
    return {
        metric: Figure(model["metrics"][metric], *intervals.get(metric, (None, None)))
        for metric in metrics
        if metric in model["metrics"]
    }


def _user_groups(column: str, rows: Sequence[Mapping[str, Any]], metric: str) -> UserGroups:
    own, *others = rows[0]["models"]

    def total(model: str) -> float:
        return sum(float(row["n_users"] * row["models"][model]["value"]) for row in rows)

    def figure(row: Mapping[str, Any], model: str) -> Figure:
        found = row["models"][model]
        return Figure(found["value"], *found["interval"])

    # The strongest beside it, by the mean over all these users.
    strongest = max(others, key=total, default="")
    return UserGroups(
        column,
        metric,
        [
            GroupRow(
                row["group"],
                row["n_users"],
                figure(row, own),
                figure(row, strongest) if strongest else None,
            )
            for row in rows
        ],
        strongest,
    )


def _data_facts(results: Mapping[str, Any], recipe: Recipe) -> DataFacts:
    data = results.get("data", {})
    interactions, parts = data.get("interactions", {}), data.get("split", {})
    own = next(iter(results["models"].values()))
    return DataFacts(
        name=data_name(recipe),
        n_users=data.get("users", {}).get("rows", own["n_users"]),
        n_items=data.get("items", {}).get("rows", own["n_items"]),
        n_interactions=parts.get("train", 0) + recipe.evaluation.refit * parts.get("validation", 0),
        parts=parts,
        period=(interactions["first"], interactions["last"]) if "first" in interactions else (),
        hub_id=recipe.card.data_hub_id,
        licence=data_terms(recipe),
    )


def _options(recipe: Recipe) -> dict[str, Any]:
    """Return the preset, its overrides, and the training options that matter or were changed."""
    usual = to_plain(TrainingRecipe())
    shown = {
        name: value
        for name, value in to_plain(recipe.training).items()
        if name in ALWAYS_SHOWN or (value != usual[name] and name not in NEVER_SHOWN)
    }
    return {"preset": recipe.model.preset, **recipe.model.overrides, **shown}


def _cost(results: Mapping[str, Any]) -> Cost:
    """Return the recorded cost; of an older run its time and hardware."""
    if results.get("cost"):
        return Cost(**results["cost"])
    seconds = results.get("training", {}).get("seconds", 0.0)
    return Cost(seconds, results.get("hardware", "unknown hardware"))
