"""A run from its tables to its checkpoint: propose, train, save, compare, save again, push."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.comparison import (
    check_group_columns,
    check_rivals_and_baselines,
    compare,
    rivals_beside,
)
from ftmamba.data.readers import Source
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables
from ftmamba.defaults import propose
from ftmamba.evaluation import Split
from ftmamba.evaluation.evaluate import unreachable
from ftmamba.flags import read_keywords
from ftmamba.recipe import (
    DataRecipe,
    ExamplesRecipe,
    Recipe,
    as_mapping,
    build,
    choose_variant,
    lay_over,
    read_recipe,
    recipe_from_dict,
)
from ftmamba.results import make_checkpoint, measured_cost
from ftmamba.training.run import (
    check_before_training,
    folder_of_run,
    make_accelerator,
    make_protocol,
    read_tables,
    split_tables,
    start_processes,
    train,
)
from hub_cards import with_card
from hub_cards.training_push import check_hub, pushing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves in memory.

    Attributes:
        recipe: which rebuilds it.
        tables: that it read.
        split: of their interactions.
        checkpoint: as it was saved.
        is_main: whether this process saves and prints, of those that were launched.
    """

    recipe: Recipe
    tables: Tables
    split: Split
    checkpoint: Checkpoint
    is_main: bool


@dataclass(frozen=True)
class ProposedRun:
    """A recipe that fits some tables.

    Attributes:
        recipe: what was given, and what was chosen for the rest.
        tables: that were looked at.
        reasons: a sentence for each choice.
    """

    recipe: Recipe
    tables: Tables
    reasons: tuple[str, ...]

    def describe(self) -> str:
        """Return what was read and chosen, and why, a line each."""
        tables, schema = self.tables, self.tables.schema
        lines = [
            f"{len(tables.interactions):,} interactions of {tables.users.num_rows:,} users with "
            f"{tables.items.num_rows:,} items"
        ]
        for name, table in (("users", schema.users), ("items", schema.items)):
            kinds: dict[str, list[str]] = {f"key {table.key}": []}
            if table.title:
                kinds[f"title {table.title}"] = []
            for one in table.columns:
                days = one.popularity_days
                kind, column = ("popularity of", f"{days} days") if days else (one.kind, one.name)
                kinds.setdefault(kind, []).append(column)
            lines.append(
                f"{name}: " + "; ".join(f"{k} {', '.join(v)}".strip() for k, v in kinds.items())
            )
        return "\n  ".join([*lines, *self.reasons])


def propose_recipe(given: Mapping[str, Any], tables: Tables | None = None) -> ProposedRun:
    """Choose what a partial recipe leaves open so that it fits the tables.

    Args:
        given: a partial recipe.
        tables: already read; None reads those that it names.
    """
    given, data = _partial_recipe(given)
    if tables is None:
        data.check_complete()
        tables = read_tables(data, given.get("schema"), start_processes())
    proposal = propose(tables, given)
    schema = proposal.values.get("schema", tables.schema.to_dict())
    tables = replace(tables, schema=Schema.from_dict(schema))
    values = {**lay_over(Recipe, proposal.values, given), "schema": schema}
    recipe = recipe_from_dict(values)
    if recipe.data.positive_threshold is not None:
        positives = tables.interactions.at_least(recipe.data.positive_threshold)
        tables = replace(tables, interactions=positives)
    if "output_dir" not in given:
        recipe = replace(recipe, output_dir=_new_folder(recipe.data))
    if recipe.examples == ExamplesRecipe():
        users, counts = np.unique(tables.interactions.user_ids, return_counts=True)
        median = users[np.argsort(counts, kind="stable")[len(users) // 2]]
        recipe = replace(recipe, examples=ExamplesRecipe(user_key=tables.user_keys[median]))
    return ProposedRun(recipe, tables, tuple(proposal.reasons))


def _new_folder(data: DataRecipe) -> str:
    """Return a folder that holds no run yet, of the same name for every launched process."""
    name = data.name or Path(data.interactions).name.partition(".")[0] or "latest"
    numbers = ("", *(f"-{number}" for number in range(2, 10_000)))
    folders = (f"runs/{name}{number}" for number in numbers)
    return str(broadcast_object_list([next(one for one in folders if not Path(one).exists())])[0])


def fit_tables(sources: Mapping[str, Source | None], options: Mapping[str, Any]) -> FinishedRun:
    """Read tables, propose a recipe and run it; without `output_dir` nothing is left on the disk.

    Args:
        sources: of `interactions` and, unless None, `items` and `users`.
        options: of the recipe, by the names of their flags.
    """
    start_processes()  # which shows the log
    given, data = _partial_recipe(
        lay_over(Recipe, {"data": _paths(sources)}, read_keywords(options))
    )
    tables = load_tables(
        sources["users"], sources["items"], sources["interactions"], given.get("schema"),
        drop_unknown=data.drop_unknown, positive_threshold=data.positive_threshold,
    )  # fmt: skip
    proposed = propose_recipe(given, tables)
    logger.info("%s", proposed.describe())
    if "output_dir" in given:
        return run_recipe(proposed.recipe, tables)
    # Kept where the run fails: a model that is trained already is in it.
    folder = Path(mkdtemp(prefix="ftmamba-"))
    finished = run_recipe(proposed.recipe, tables, folder=folder)
    shutil.rmtree(folder, ignore_errors=True)
    return finished


def _partial_recipe(given: Mapping[str, Any]) -> tuple[dict[str, Any], DataRecipe]:
    """Return the given options, by default without unknown keys' rows, and the section `data`."""
    own = as_mapping(given.get("data", {}), DataRecipe)
    if own.get("interactions"):
        own = {"drop_unknown": True, **own}
    return {**given, "data": own}, build(DataRecipe, own, "data")


def _paths(sources: Mapping[str, Source | None]) -> dict[str, Any]:
    """Return where the tables are, if all of them are files."""
    paths: dict[str, Any] = {}
    for name, source in sources.items():
        parts = source if isinstance(source, list | tuple) else [source]
        if source is not None and not all(isinstance(part, str | Path) for part in parts):
            return {}
        paths |= {} if source is None else {name: [str(part) for part in parts]}
    return {name: parts[0] if len(parts) == 1 else parts for name, parts in paths.items()}


def load_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """Return a recipe from plain values, from a file or by a shipped name."""
    if isinstance(recipe, Recipe):
        return recipe
    values = recipe if isinstance(recipe, Mapping) else read_recipe(recipe)
    return recipe_from_dict(choose_variant(values, None))


def run_recipe(
    recipe: Recipe, tables: Tables | None = None, *, folder: Path | None = None
) -> FinishedRun:
    """Train, save, compare with the recipe's baselines and rivals, save again and push.

    Args:
        recipe: of the run.
        tables: already read; None reads those that the recipe names.
        folder: where to write; None writes into the recipe's `output_dir`.

    Raises:
        ValueError: a recipe or tables that cannot be trained.
        OSError: a file is missing, or the disk is full.
    """
    here = recipe if folder is None else replace(recipe, output_dir=str(folder))
    check_rivals_and_baselines(recipe)
    check_hub(recipe)
    accelerator = make_accelerator(here)
    with folder_of_run(Path(here.output_dir), accelerator):
        return _run_in_folder(recipe, here, tables, accelerator)


def _run_in_folder(
    recipe: Recipe, here: Recipe, tables: Tables | None, accelerator: Accelerator
) -> FinishedRun:
    is_main = accelerator.is_main_process
    reads = tables is None
    if tables is None:
        recipe.data.check_complete()
        tables = read_tables(recipe.data, recipe.schema, accelerator)
    check_before_training(recipe, tables)
    check_group_columns(recipe.evaluation.user_groups, tables)
    split = split_tables(tables, recipe)
    _warn_of_unreachable(recipe, split)
    # Where there is one process, on a CPU, another can train the rivals meanwhile.
    alone = reads and accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    second = rivals_beside(here, tables, accelerator) if alone else nullcontext()
    with pushing(here, tables, is_main=is_main) as hub, second as beside:
        with measured_cost(recipe.card.country) as cost:
            on_checkpoint = None if hub is None else hub.on_save
            trained = train(here, tables, split, accelerator, on_checkpoint=on_checkpoint)
        if is_main:
            _save(here, make_checkpoint(recipe, tables, split, trained, None, cost=cost))
        try:
            comparison = compare(here, tables, split, trained, accelerator, beside=beside)
        except BaseException:
            logger.warning(
                "the comparison ended early; the trained model is in %s", here.output_dir
            )
            raise
        checkpoint = make_checkpoint(recipe, tables, split, trained, comparison, cost=cost)
        if is_main:
            checkpoint = with_card(checkpoint)
            _save(here, checkpoint)
            if hub is not None:
                hub.finish()
    accelerator.end_training()
    return FinishedRun(recipe, tables, split, checkpoint, is_main)


def _warn_of_unreachable(recipe: Recipe, split: Split) -> None:
    """Say before training what no model can predict; it lowers every figure, or makes it 0."""
    if not make_protocol(recipe.evaluation).mask_seen:
        return
    parts = {"validation": (split.validation, split.train), "test": (split.test, split.before_test)}
    found = [unreachable(*both).describe(part) for part, both in parts.items() if len(both[0])]
    if words := "; ".join(filter(None, found)):
        logger.warning(
            "WARNING: seen items %s. Where people take the same item again, set "
            "evaluation.mask_seen: false and model.overrides: {repeat_bias: true}, without "
            "mask_history",
            words,
        )


def _save(recipe: Recipe, checkpoint: Checkpoint) -> None:
    save_checkpoint(recipe.output_dir, checkpoint, max_shard_size=recipe.max_shard_size)
