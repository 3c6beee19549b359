"""`python -m ftmamba dataset-card`: write the card of a data set from its tables."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ftmamba.commands.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="a recipe (a YAML file or a shipped name) or a run's folder")
    parser.add_argument("--repo", default="", help="Hub id that the card's examples load")
    parser.add_argument(
        "--licence", default="other", help="of the data, as the Hub spells it (default: other)"
    )
    parser.add_argument("--output", type=Path, help="file to write; the default prints the card")


def run(arguments: Namespace) -> None:
    """Read the tables and write their card."""
    from dataclasses import replace

    from accelerate import PartialState

    from ftmamba.experiment.dataset_card import dataset_card
    from ftmamba.recipe import choose_variant, read_recipe, recipe_from_dict
    from ftmamba.training.run import read_tables

    path = Path(arguments.recipe)
    values = read_recipe(path / "recipe.yaml" if path.is_dir() else arguments.recipe)
    recipe = recipe_from_dict(choose_variant(values, None))
    recipe.data.check_complete()
    if arguments.repo:
        recipe = replace(recipe, card=replace(recipe.card, data_hub_id=arguments.repo))
    state: Any = PartialState()
    tables = read_tables(recipe.data, recipe.schema, state)
    card = dataset_card(recipe, tables, licence=arguments.licence)
    if arguments.output is None:
        print(card, end="")
    else:
        arguments.output.write_text(card, encoding="utf-8")
        print(arguments.output)


COMMAND = Command("write the card of a data set from its tables", add_arguments, run)
