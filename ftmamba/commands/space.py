"""`python -m ftmamba space`: a page that shows a checkpoint's recommendations, as a Space."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ftmamba.commands.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", help="a Hub id such as name/repo, or a checkpoint's folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--space", metavar="NAME/REPO", help="push the page to this Space")
    where.add_argument(
        "--folder", type=Path, help="write the page's files here; `python app.py` serves them"
    )
    parser.add_argument("--private", action="store_true", help="make the Space private")


def run(arguments: Namespace) -> None:
    """Write or push the page."""
    from ftmamba.experiment.space import push_space, space_of, write_space

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


COMMAND = Command("show a checkpoint's recommendations on a page, as a Space", add_arguments, run)
