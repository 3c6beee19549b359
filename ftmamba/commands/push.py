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

    from ftmamba.hub.by_hand import Destination, Selection, look_over, push_by_hand

    logging.basicConfig(format="%(message)s")
    folder, api = Path(arguments.checkpoint), HfApi()
    destination = Destination(
        arguments.repository,
        arguments.revision,
        private=arguments.private,
        create_pr=arguments.create_pr,
    )
    selection = Selection(
        arguments.message,
        with_catalogue=not arguments.without_catalogue,
        with_training_state=arguments.training_state,
    )
    listed, warning = look_over(folder, selection, api=api)
    print(listed)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.dry_run:
        return
    sys.stdout.flush()
    pushed = push_by_hand(folder, destination, selection, api=api)
    print(f"\npushed to {pushed.url}")
    if not arguments.create_pr:
        print(
            "load it with Recommender.from_pretrained("
            f'"{destination.repo_id}", revision="{pushed.commit}")'
        )


COMMAND = Command("push a checkpoint to the Hub", add_arguments, run)
