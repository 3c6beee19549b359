"""A checkpoint's card made anew from what lies in its folder."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ftmamba.atomic import whole_file
from ftmamba.checkpoint import CARD_FILE, RESULTS_FILE, Checkpoint
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Evaluation
from ftmamba.experiment.card import card_facts
from ftmamba.experiment.card_examples import code_hashes, typical_record
from ftmamba.experiment.data_facts import describe_split, describe_tables
from ftmamba.experiment.finish import learning_curves
from ftmamba.experiment.user_groups import check_group_columns, group_figures
from ftmamba.recipe import Recipe, recipe_from_dict
from ftmamba.training.run import read_tables, split_tables
from hub_cards import render_model_card
from hub_cards.merge import merge_card
from hub_cards.preview import render_preview

logger = logging.getLogger(__name__)

FIRST_MARK = "<!-- ftmamba:begin "


@dataclass(frozen=True)
class Rebuilt:
    """A card with what it shows.

    Attributes:
        card: its text.
        results: the checkpoint's, and what was counted for the card.
        pictures: file name to PNG.
    """

    card: str
    results: Mapping[str, Any]
    pictures: Mapping[str, bytes]

    def preview(self) -> str:
        """Return a page that shows the card.

        Raises:
            ImportError: markdown-it-py is not installed; says how to get it.
        """
        return render_preview(self.card, self.pictures)

    def save(self, folder: Path, card_path: Path | None = None) -> None:
        """Write the card, its pictures and its figures, each whole or not at all.

        Args:
            folder: of the checkpoint.
            card_path: of the card, if it is to lie elsewhere.
        """
        results = json.dumps(dict(self.results), indent=2, ensure_ascii=False, allow_nan=False)
        files = {folder / name: picture for name, picture in self.pictures.items()}
        files[folder / RESULTS_FILE] = f"{results}\n".encode()
        files[card_path or folder / CARD_FILE] = self.card.encode()
        for path, content in files.items():
            with whole_file(path) as temporary:
                temporary.write_bytes(content)


def rebuild_card(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    user_groups: Sequence[str] = (),
    evaluate: Callable[[Checkpoint], Evaluation],
) -> Rebuilt:
    """Make a checkpoint's card anew; what a person wrote between its sections stays.

    Args:
        checkpoint: what the folder holds.
        folder: of the checkpoint.
        user_groups: columns of the users by which the test users are judged; the recipe's tables
            are read and the model is evaluated again, the others are not fitted anew.
        evaluate: repeats the checkpoint's evaluation.

    Raises:
        ValueError: the checkpoint has no recipe or no results, or the users lack a column.
        FileNotFoundError: the groups need a table that is missing.
    """
    if not checkpoint.recipe:
        raise ValueError(f"{str(folder)!r} has no recipe.yaml, so no card can be made of it")
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    results = dict(checkpoint.results)
    if user_groups:
        tables = _tables(recipe)
        check_group_columns(user_groups, tables)
        own = next(iter(results.get("models", {"FT-Mamba": None})))
        metric = recipe.evaluation.selection_metric
        figures = group_figures(
            {own: evaluate(checkpoint)}, tables, columns=user_groups, metric=metric
        )
        results["user_groups"] = {**results.get("user_groups", {}), **figures}
        results["data"] = _facts_of_data(recipe, tables)
    elif "data" not in results:
        results |= _facts_of_data_if_there(recipe)
    pictures = learning_curves(results, recipe)
    facts = card_facts(
        results,
        recipe,
        config=checkpoint.model.config,
        extractor=checkpoint.extractor,
        example=recipe.examples.record
        or typical_record(checkpoint.extractor, results.get("data", {})),
        code=code_hashes(folder),
        curves=next(iter(pictures), ""),
    )
    facts = replace(facts, repo=recipe.hub_model_id or str(folder))
    card = render_model_card(facts)
    # Of a card that bears no marks nobody can say what a person wrote in it.
    if FIRST_MARK in checkpoint.card:
        card = merge_card(card, checkpoint.card)
    return Rebuilt(card, results, pictures)


def _tables(recipe: Recipe) -> Tables:
    # Reading asks no more of Accelerate than which process downloads first: here is only one.
    state: Any = PartialState()
    return read_tables(recipe.data, recipe.schema, state)


def _facts_of_data(recipe: Recipe, tables: Tables) -> dict[str, Any]:
    return {**describe_tables(tables), "split": describe_split(split_tables(tables, recipe))}


def _facts_of_data_if_there(recipe: Recipe) -> dict[str, Any]:
    try:
        return {"data": _facts_of_data(recipe, _tables(recipe))}
    except (OSError, ValueError) as error:
        logger.warning("the card has no missing rates: the tables cannot be read (%s)", error)
        return {}
