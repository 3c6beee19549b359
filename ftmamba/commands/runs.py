"""`python -m ftmamba runs`: the results of several runs in one table."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ftmamba.commands.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder that holds finished runs")
    parser.add_argument("--metric", default="NDCG@10", help="to sort by (default: NDCG@10)")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")


def run(arguments: Namespace) -> None:
    """Print the table, the best run on top."""
    from ftmamba.run_table import as_csv, as_markdown, find_runs, run_table

    rows = run_table(find_runs(arguments.folder), arguments.metric)
    print(as_csv(rows) if arguments.csv else as_markdown(rows))


COMMAND = Command("print the results of several runs in one table", add_arguments, run)
