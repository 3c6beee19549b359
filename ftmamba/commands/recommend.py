"""`python -m ftmamba recommend`: items for a known user, for a raw record, or like another item."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ftmamba.commands.command import Command

if TYPE_CHECKING:
    from ftmamba.recommender import Recommendation, Recommender


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
    who.add_argument("--similar-to", metavar="KEY", help="an item: print those most like it")
    parser.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    parser.add_argument(
        "--include-seen", action="store_true", help="keep what the user has already taken"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")


def run(arguments: Namespace) -> None:
    """Print the recommendations."""
    from ftmamba.recommender import Recommender

    record = None if arguments.record is None else parse_record(arguments.record)
    recommender = Recommender.from_pretrained(arguments.checkpoint, revision=arguments.revision)
    found = _ask(recommender, arguments, record=record)
    print(as_json(found) if arguments.json else as_table(found))


def parse_record(text: str) -> dict[str, Any]:
    """Read a raw record from JSON.

    Raises:
        ValueError: the text is no JSON object.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--record is no JSON ({error}): {text!r}; "
            'write it as --record \'{"column": "value"}\''
        ) from error
    if not isinstance(record, dict):
        raise ValueError(
            f"--record must be a JSON object of columns and values, got {text!r}; "
            'write it as --record \'{"column": "value"}\''
        )
    return record


def as_table(found: Sequence["Recommendation"]) -> str:
    """Align rank, score, key and title; leave the title out where there is none."""
    rows = [("rank", "score", "item", "title")]
    rows += [
        (str(rank), f"{one.score:.4f}", one.item_key, " ".join(one.title.split()))
        for rank, one in enumerate(found, start=1)
    ]
    if not any(one.title for one in found):
        rows = [(*row[:3], "") for row in rows]
    rank, score, item = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"{row[0]:>{rank}}  {row[1]:>{score}}  {row[2]:<{item}}  {row[3]}" for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def as_json(found: Sequence["Recommendation"]) -> str:
    """Return a JSON list of objects with `item_key`, `score` and `title`."""
    return json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False)


def _ask(
    recommender: "Recommender", arguments: Namespace, *, record: dict[str, Any] | None
) -> list["Recommendation"]:
    if arguments.similar_to is not None:
        return recommender.similar_items(arguments.similar_to, arguments.k)
    return recommender.recommend(
        user_key=arguments.user,
        record=record,
        k=arguments.k,
        exclude_seen=not arguments.include_seen,
    )


COMMAND = Command("recommend items from a checkpoint", add_arguments, run)
