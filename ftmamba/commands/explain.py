"""`python -m ftmamba explain`: what each column adds to the score of one item for one user."""

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ftmamba.commands.command import Command
from ftmamba.commands.recommend import parse_record

if TYPE_CHECKING:
    from ftmamba.explanations import Explanation


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="KEY", help="a user of the training tables")
    who.add_argument(
        "--record",
        metavar="JSON",
        help='raw columns of anybody, such as \'{"age": 31, "occupation": "doctor"}\'',
    )
    parser.add_argument("--item", metavar="KEY", required=True, help="an item of the catalogue")
    parser.add_argument("--plot", metavar="FILE", help="draw the shares, such as into why.png")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")


def run(arguments: Namespace) -> None:
    """Print the explanation, and draw it if asked."""
    from ftmamba.recommender import Recommender

    user = arguments.user if arguments.record is None else parse_record(arguments.record)
    recommender = Recommender.from_pretrained(arguments.checkpoint, revision=arguments.revision)
    explanation = recommender.explain(user, arguments.item)
    if arguments.plot is not None:
        explanation.plot(arguments.plot)
    if arguments.json:
        print(json.dumps(explanation.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(as_table(explanation))


def as_table(explanation: "Explanation") -> str:
    """Write the sum first, then every column, the strongest first."""
    parts = [sum(shares.values()) for shares in (explanation.user, explanation.item)]
    title = " ".join(explanation.title.split())
    lines = [
        f"item {explanation.item_key}{f' ({title})' if title else ''}",
        f"score {explanation.score:.4f} = {explanation.baseline_score:.4f} when nothing is known "
        f"{parts[0]:+.4f} user {parts[1]:+.4f} item",
    ]
    if explanation.standard_error:
        lines.append(f"shares are estimates; standard error {explanation.standard_error:.2g}")
    rows = [
        (f"{share:+.4f}", tower, column, " ".join(value.split()))
        for tower, column, value, share in explanation.ranked()
    ]
    rows.insert(0, ("adds", "of", "column", "value"))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines += [
        f"{adds:>{widths[0]}}  {tower:<{widths[1]}}  {column:<{widths[2]}}  {value}".rstrip()
        for adds, tower, column, value in rows
    ]
    return "\n".join(lines)


COMMAND = Command("say why an item is recommended to a user", add_arguments, run)
