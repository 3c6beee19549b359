"""The commands around the Hub: `push`, `card`, `dataset-card` and `space`."""

import json
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftmamba.checkpoint import Checkpoint
    from ftmamba.evaluation import Evaluation

logger = logging.getLogger(__name__)


def add_push_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `push`."""
    add = parser.add_argument
    add("checkpoint", help="folder of a checkpoint: the output_dir of a run")
    add("repository", help="where to, such as user/name; made if need be")
    add("--revision", default="main", help="branch; made if need be (default: main)")
    add("--create_pr", "--create-pr", action="store_true", help="open a pull request instead")
    add("--private", action="store_true", help="make the repository private if it is made")
    add("--message", default="Push an FT-Mamba checkpoint", help="of the commit")
    add(
        "--without_catalogue", "--without-catalogue", action="store_true",
        help="leave out the items' keys, titles and embeddings",
    )  # fmt: skip
    add(
        "--training_state", "--training-state", action="store_true",
        help="push what resuming needs too, where the folder holds it",
    )  # fmt: skip
    add("--dry_run", "--dry-run", action="store_true", help="list what would be pushed, and stop")


def run_push(arguments: Namespace) -> None:
    """List what is pushed, then push it."""
    from huggingface_hub import HfApi

    from ftmamba.atomic import whole_folder_at
    from ftmamba.hub import TRIES, known_tokens
    from hub_cards.contents import list_contents, personal_warning, published_files
    from hub_cards.push import Destination, push_checkpoint

    logging.basicConfig(format="%(message)s")
    api = HfApi()
    destination = Destination(
        arguments.repository,
        arguments.revision,
        private=arguments.private,
        create_pr=arguments.create_pr,
    )
    parts = {
        "with_catalogue": not arguments.without_catalogue,
        "with_training_state": arguments.training_state,
    }
    folder = whole_folder_at(Path(arguments.checkpoint).expanduser().resolve())
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; give the output_dir of a finished run")
    print(list_contents(published_files(folder, **parts, tokens=known_tokens(api.token))))
    if warning := personal_warning(folder):
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.dry_run:
        return
    sys.stdout.flush()
    pushed = push_checkpoint(
        folder, destination, message=arguments.message, **parts, api=api, tries=TRIES
    )
    print(f"\npushed to {pushed.url}")
    if not arguments.create_pr:
        print(
            "load it with Recommender.from_pretrained("
            f'"{destination.repo_id}", revision="{pushed.commit}")'
        )


def add_card_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `card`."""
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument(
        "--user_group", action="append", default=[], metavar="COLUMN",
        help="show results by this column of the users too; may be repeated",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="the card's file (default: README.md inside)")
    parser.add_argument("--html", type=Path, help="write a page that shows the card, to look at")


def run_card(arguments: Namespace) -> None:
    """Write the card and print where it is."""
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
        checkpoint: what `folder` holds.
        folder: of the checkpoint.
        user_groups: columns of the users whose groups are shown; only the checkpoint's own model is
            evaluated again, on the recipe's tables.
        evaluate: repeats the checkpoint's evaluation.
    """
    from ftmamba.commands.evaluate import tables_of
    from ftmamba.comparison import check_group_columns, group_figures
    from ftmamba.recipe import recipe_from_dict
    from ftmamba.results import describe_data
    from ftmamba.training.run import split_tables
    from hub_cards import with_card
    from hub_cards.merge import FIRST_MARK, merge_card

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
            logger.warning("the card has no missing rates: the tables cannot be read (%s)", error)
    made = with_card(replace(checkpoint, results=results), folder=folder)
    # A card without marks does not show what a person wrote in it.
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


def add_dataset_card_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `dataset-card`."""
    parser.add_argument("recipe", help="a recipe (a YAML file or a shipped name) or a run's folder")
    parser.add_argument("--repo", default="", help="Hub id that the card's examples load")
    parser.add_argument(
        "--licence", default="other", help="of the data, as the Hub spells it (default: other)"
    )
    parser.add_argument("--output", type=Path, help="file to write; the default prints the card")


def run_dataset_card(arguments: Namespace) -> None:
    """Read the tables and write their card."""
    from ftmamba.commands.evaluate import tables_of
    from ftmamba.recipe import choose_variant, read_recipe, recipe_from_dict
    from hub_cards.card import dataset_card

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


def add_space_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `space`."""
    parser.add_argument("model", help="a Hub id such as name/repo, or a checkpoint's folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--space", metavar="NAME/REPO", help="push the page to this Space")
    where.add_argument(
        "--folder", type=Path, help="write the page's files here; `python app.py` serves them"
    )
    parser.add_argument("--private", action="store_true", help="make the Space private")


def run_space(arguments: Namespace) -> None:
    """Write or push the page."""
    from hub_cards.space import push_space, space_of, write_space

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
