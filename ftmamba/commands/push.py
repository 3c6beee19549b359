"""`python -m ftmamba push`: a checkpoint from the disk to the Hub."""

import logging
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ftmamba.commands.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint: the output_dir of a run")
    parser.add_argument("repository", help="where to, such as user/name; made if need be")
    parser.add_argument(
        "--revision", default="main", help="branch; made if need be (default: main)"
    )
    parser.add_argument(
        "--create_pr", "--create-pr", action="store_true", help="open a pull request instead"
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository private if it is made"
    )
    parser.add_argument("--message", default="Push an FT-Mamba checkpoint", help="of the commit")
    parser.add_argument(
        "--without_catalogue", "--without-catalogue", action="store_true",
        help="leave out the items' keys, titles and embeddings",
    )  # fmt: skip
    parser.add_argument(
        "--training_state", "--training-state", action="store_true",
        help="push what resuming needs too, where the folder holds it",
    )  # fmt: skip
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list what would be pushed, and stop"
    )


def run(arguments: Namespace) -> None:
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


COMMAND = Command("push a checkpoint to the Hub", add_arguments, run)
