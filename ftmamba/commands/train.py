"""`ftmamba train` and `train_accelerate.py`: from flags to a trained checkpoint and its results."""

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftmamba.data.interactions import Interactions
    from ftmamba.data.tables import Tables
    from ftmamba.recipe import ExamplesRecipe
    from ftmamba.recommender import Recommender
    from ftmamba.run import FinishedRun

N_SHOWN, WIDTH = 10, 44
"""Items listed in examples, and the width of a column of them."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare nothing: the flags are those of a recipe, and reading them imports much."""
    del parser


def run(arguments: Namespace) -> None:
    """Run the recipe that `--config` names, or without one a recipe proposed for the tables."""
    from ftmamba.flags import read_flags
    from ftmamba.recipe import recipe_from_dict
    from ftmamba.run import propose_recipe, run_recipe
    from ftmamba.training.run import start_processes

    program = "ftmamba train" if arguments.program == "ftmamba" else arguments.program
    values, is_recipe = read_flags(arguments.rest, program=program)
    if is_recipe:
        finished = run_recipe(recipe_from_dict(values))
    else:
        proposed = propose_recipe(values)
        if start_processes().is_main_process:
            print(proposed.describe(), flush=True)
        finished = run_recipe(proposed.recipe, proposed.tables)
    if finished.is_main:
        print_results(finished)


def print_results(finished: "FinishedRun") -> None:
    """Print the results and a few recommendations of the checkpoint."""
    from ftmamba.recommender import Recommender

    recommender = Recommender.from_pretrained(finished.recipe.output_dir)
    print(f"\n{recommender.evaluation}")
    examples, known = finished.recipe.examples, finished.split.before_test
    if shown := show_examples(recommender, examples, finished.tables, known):
        print(f"\n{shown}")
    print(f"\nCheckpoint and all_results.json: {finished.recipe.output_dir}", flush=True)


def show_examples(
    recommender: "Recommender", recipe: "ExamplesRecipe", tables: "Tables", known: "Interactions"
) -> str:
    """Lay out ten recommendations beside a user's newest items, and ten for a record of no user."""
    import numpy as np

    def words(record: Mapping[str, Any]) -> str:
        text = ", ".join(f"{name} {value}" for name, value in record.items() if value is not None)
        return textwrap.shorten(text, 2 * WIDTH, placeholder=" ...")

    def recommended(**who: Any) -> list[str]:
        found = recommender.recommend(**who, k=min(N_SHOWN, len(recommender.catalogue)))
        return [f"{one.score:7.2f}  {one.title or one.item_key}" for one in found]

    parts = []
    if recipe.user_key:
        row = tables.user_row(recipe.user_key)
        mine = known.select(known.user_ids == row)
        order = np.arange(len(mine))
        if mine.times is not None:
            order = np.argsort(mine.times, kind="stable")
        newest = [
            tables.item_titles[item] or tables.item_keys[item]
            for item in mine.item_ids[order[::-1][:N_SHOWN]]
        ]
        columns = [
            ["newest first" if known.is_ordered else "interacted with", *newest],
            ["recommended", *recommended(user_key=recipe.user_key)],
        ]
        n_rows = max(map(len, columns))
        left, right = ([*lines, *[""] * (n_rows - len(lines))] for lines in columns)
        record = tables.user_record(row)
        record.pop(tables.schema.users.key, None)
        about = words(record)
        lines = [f"User {recipe.user_key} ({about})" if about else f"User {recipe.user_key}"]
        lines += [f"  {a[:WIDTH]:<{WIDTH}}  {b}".rstrip() for a, b in zip(left, right, strict=True)]
        parts.append("\n".join(lines))
    if recipe.record:
        lines = [f"A user never seen ({words(recipe.record)})", "recommended"]
        lines += recommended(record=recipe.record)
        parts.append("\n".join([lines[0], *(f"  {line}" for line in lines[1:])]))
    if recipe.history:
        rows = [recommender.catalogue.row(key) for key in recipe.history]
        names = [tables.item_titles[row] or tables.item_keys[row] for row in rows]
        column = tables.schema.users.history_column
        assert column is not None
        found = recommended(record={column.name: list(recipe.history)})
        lines = [f"Somebody who chose {', '.join(names)}", "  recommended"]
        parts.append("\n".join([*lines, *(f"  {line}" for line in found)]))
    return "\n\n".join(parts)
