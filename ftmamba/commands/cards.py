"""The commands that write cards: `card` of a checkpoint, `dataset-card`, and `space`, a page."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftmamba.commands.command import Command

if TYPE_CHECKING:
    from ftmamba.checkpoint import Checkpoint
    from ftmamba.evaluation import Evaluation

FIRST_MARK = "<!-- ftmamba:begin "


def _add_card(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument(
        "--user_group",
        action="append",
        default=[],
        metavar="COLUMN",
        help="show results by this column of the users too; may be repeated",
    )
    parser.add_argument("--output", type=Path, help="the card's file (default: README.md inside)")
    parser.add_argument("--html", type=Path, help="write a page that shows the card, to look at")


def _card(arguments: Namespace) -> None:
    from ftmamba.checkpoint import load_checkpoint
    from ftmamba.commands.evaluate import repeat_evaluation
    from hub_cards.pictures import render_preview

    folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r}; give the output_dir of a finished run. To change a card "
            "on the Hub, make it here and push it"
        )
    made = rebuild_card(
        load_checkpoint(folder),
        folder,
        user_groups=arguments.user_group,
        evaluate=lambda checkpoint: repeat_evaluation(checkpoint)[1],
    )
    path = arguments.output or folder / "README.md"
    save_card(made, folder, path)
    print(path)
    if arguments.html:
        arguments.html.write_text(render_preview(made.card, made.pictures), encoding="utf-8")
        print(arguments.html)


def rebuild_card(
    checkpoint: "Checkpoint",
    folder: Path,
    *,
    user_groups: Sequence[str] = (),
    evaluate: "Callable[[Checkpoint], Evaluation]",
) -> "Checkpoint":
    """Return the checkpoint with a new card; what a person wrote between its sections stays.

    Args:
        checkpoint: what the folder holds.
        folder: of the checkpoint.
        user_groups: columns of the users whose groups are shown; the recipe's tables are read and
            the model is evaluated again, the others are not fitted anew.
        evaluate: repeats the checkpoint's evaluation.

    Raises:
        ValueError: the checkpoint has no recipe or no results, or the users lack a column.
        FileNotFoundError: the groups need a table that is missing.
    """
    import logging

    from ftmamba.comparison import check_group_columns, group_figures
    from ftmamba.recipe import recipe_from_dict
    from ftmamba.results import describe_data
    from ftmamba.training.run import split_tables
    from hub_cards import with_card
    from hub_cards.merge import merge_card

    results = dict(checkpoint.results)
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    if user_groups:
        tables = tables_of(recipe)
        check_group_columns(user_groups, tables)
        own = next(iter(results.get("models", {"FT-Mamba": None})))
        metric = recipe.evaluation.selection_metric
        figures = group_figures(
            {own: evaluate(checkpoint)}, tables, columns=user_groups, metric=metric
        )
        results["user_groups"] = {**results.get("user_groups", {}), **figures}
        results["data"] = describe_data(tables, split_tables(tables, recipe))
    elif checkpoint.recipe and "data" not in results:
        try:
            tables = tables_of(recipe)
            results["data"] = describe_data(tables, split_tables(tables, recipe))
        except (OSError, ValueError) as error:
            logging.getLogger(__name__).warning(
                "the card has no missing rates: the tables cannot be read (%s)", error
            )
    made = with_card(replace(checkpoint, results=results), folder=folder)
    # In a card without marks, generated text cannot be told from a person's.
    if FIRST_MARK not in checkpoint.card:
        return made
    return replace(made, card=merge_card(made.card, checkpoint.card))


def save_card(checkpoint: "Checkpoint", folder: Path, card_path: Path) -> None:
    """Write a checkpoint's card, pictures and results, each whole or not at all."""
    from ftmamba.atomic import whole_file

    results = json.dumps(dict(checkpoint.results), indent=2, ensure_ascii=False, allow_nan=False)
    files = {folder / name: picture for name, picture in checkpoint.pictures.items()}
    files[folder / "all_results.json"] = f"{results}\n".encode()
    files[card_path] = checkpoint.card.encode()
    for path, content in files.items():
        with whole_file(path) as temporary:
            temporary.write_bytes(content)


def tables_of(recipe: Any) -> Any:
    """Read the tables that a recipe names."""
    from accelerate import PartialState

    from ftmamba.training.run import read_tables

    # Reading only asks Accelerate which process downloads first: here there is one.
    state: Any = PartialState()
    return read_tables(recipe.data, recipe.schema, state)


def _add_dataset_card(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe (a YAML file or a shipped name) or a run's folder")
    parser.add_argument("--repo", default="", help="Hub id that the card's examples load")
    parser.add_argument(
        "--licence", default="other", help="of the data, as the Hub spells it (default: other)"
    )
    parser.add_argument("--output", type=Path, help="file to write; the default prints the card")


def _dataset_card(arguments: Namespace) -> None:
    from ftmamba.recipe import choose_variant, read_recipe, recipe_from_dict
    from hub_cards.dataset_card import dataset_card

    path = Path(arguments.recipe)
    values = read_recipe(path / "recipe.yaml" if path.is_dir() else arguments.recipe)
    recipe = recipe_from_dict(choose_variant(values, None))
    recipe.data.check_complete()
    if arguments.repo:
        recipe = replace(recipe, card=replace(recipe.card, data_hub_id=arguments.repo))
    card = dataset_card(recipe, tables_of(recipe), licence=arguments.licence)
    if arguments.output is None:
        print(card, end="")
    else:
        arguments.output.write_text(card, encoding="utf-8")
        print(arguments.output)


def _add_space(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id such as name/repo, or a checkpoint's folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--space", metavar="NAME/REPO", help="push the page to this Space")
    where.add_argument(
        "--folder", type=Path, help="write the page's files here; `python app.py` serves them"
    )
    parser.add_argument("--private", action="store_true", help="make the Space private")


def _space(arguments: Namespace) -> None:
    from hub_cards.space_folder import push_space, space_of, write_space

    if arguments.space and Path(arguments.model).expanduser().is_dir():
        raise ValueError(
            f"a Space loads its model from the Hub, and {arguments.model!r} is a folder: push it "
            "first, then give its Hub id; or write the page with --folder and run it here"
        )
    facts = space_of(arguments.model, revision=arguments.revision)
    if arguments.folder:
        write_space(arguments.folder, facts)
        print(f"{arguments.folder}: serve it with python app.py")
        return
    commit = push_space(facts, arguments.space, private=arguments.private)
    print(f"{arguments.space} at commit {commit}")


CARD = Command("write a checkpoint's model card again", _add_card, _card)
DATASET_CARD = Command(
    "write the card of a data set from its tables", _add_dataset_card, _dataset_card
)
SPACE = Command("show a checkpoint's recommendations on a page, as a Space", _add_space, _space)
