"""`python -m ftmamba card`: write a checkpoint's model card anew."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ftmamba.commands.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a finished run")
    parser.add_argument(
        "--user_group",
        action="append",
        default=[],
        metavar="COLUMN",
        help="judge the test users by this column too; may be repeated",
    )
    parser.add_argument("--output", type=Path, help="the card's file (default: README.md inside)")
    parser.add_argument("--html", type=Path, help="write a page that shows the card, to look at")


def run(arguments: Namespace) -> None:
    """Write the card and say where it is."""
    from ftmamba.checkpoint import load_checkpoint
    from ftmamba.commands.evaluate import repeat_evaluation
    from ftmamba.experiment.rebuild import rebuild_card

    folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r}; give the output_dir of a finished run. To change a card "
            "on the Hub, make it here and push it"
        )
    rebuilt = rebuild_card(
        load_checkpoint(folder),
        folder,
        user_groups=arguments.user_group,
        evaluate=lambda checkpoint: repeat_evaluation(checkpoint)[1],
    )
    rebuilt.save(folder, arguments.output)
    print(arguments.output or folder / "README.md")
    if arguments.html:
        arguments.html.write_text(rebuilt.preview(), encoding="utf-8")
        print(arguments.html)


COMMAND = Command("write a checkpoint's model card anew", add_arguments, run)
