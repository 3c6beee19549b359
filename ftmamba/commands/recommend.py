"""`python -m ftmamba recommend` and `explain`: items for a user, and why."""

import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ftmamba.terminal import printable

if TYPE_CHECKING:
    from ftmamba.explanations import Explanation
    from ftmamba.recommender import Recommendation


def add_recommend_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `recommend`."""
    who = _add_who(parser)
    who.add_argument("--similar-to", metavar="KEY", help="an item: print those most like it")
    parser.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    add_exclude_seen(parser)


def add_exclude_seen(parser: ArgumentParser) -> None:
    """Declare the option of all commands that recommend."""
    parser.add_argument(
        "--exclude-seen", action=BooleanOptionalAction,
        help="leave out the user's seen items, or keep them (default: as the model was evaluated)",
    )  # fmt: skip


def add_explain_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of `explain`."""
    _add_who(parser)
    parser.add_argument("--item", metavar="KEY", required=True, help="an item of the catalogue")
    parser.add_argument("--plot", metavar="FILE", help="draw the shares, such as into why.png")


def _add_who(parser: ArgumentParser) -> Any:
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="KEY", help="a user of the training tables")
    who.add_argument(
        "--record",
        metavar="JSON",
        help='raw columns of any user, such as \'{"age": 31, "occupation": "doctor"}\'',
    )
    return who


def run_recommend(arguments: Namespace) -> None:
    """Print the recommendations."""
    from ftmamba.recommender import Recommender

    record = None if arguments.record is None else parse_record(arguments.record)
    recommender = Recommender.from_pretrained(arguments.checkpoint, revision=arguments.revision)
    if arguments.similar_to is not None:
        found = recommender.similar_items(arguments.similar_to, arguments.k)
    else:
        found = recommender.recommend(
            user_key=arguments.user,
            record=record,
            k=arguments.k,
            exclude_seen=arguments.exclude_seen,
        )
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        print(recommendations_table(found))


def run_explain(arguments: Namespace) -> None:
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
        print(explanation_table(explanation))


def parse_record(text: str) -> dict[str, Any]:
    """Read a raw record from JSON."""
    from ftmamba.checks import unique_keys

    try:
        record = json.loads(text, object_pairs_hook=unique_keys)
    except ValueError as error:
        raise ValueError(
            f"--record is not JSON ({error}): {text!r}; "
            'write it as --record \'{"column": "value"}\''
        ) from error
    if not isinstance(record, dict):
        raise ValueError(
            f"--record must be a JSON object of columns and values, got {text!r}; "
            'write it as --record \'{"column": "value"}\''
        )
    return record


def recommendations_table(found: Sequence["Recommendation"]) -> str:
    """Align rank, score, key and title; leave the title out where there is none."""
    rows = [("rank", "score", "item", "title")]
    rows += [
        (str(rank), f"{one.score:.4f}", printable(one.item_key), printable(one.title))
        for rank, one in enumerate(found, start=1)
    ]
    if not any(one.title for one in found):
        rows = [(*row[:3], "") for row in rows]
    rank, score, item = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"{row[0]:>{rank}}  {row[1]:>{score}}  {row[2]:<{item}}  {row[3]}" for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def explanation_table(explanation: "Explanation") -> str:
    """Write the sum first, then every column, the strongest first."""
    parts = {part: sum(getattr(explanation, part).values()) for part in ("user", "item", "counts")}
    sums = " ".join(f"{share:+.4f} {part}" for part, share in parts.items() if share)
    title = printable(explanation.title)
    lines = [
        f"item {printable(explanation.item_key)}{f' ({title})' if title else ''}",
        f"score {explanation.score:.4f} = {explanation.baseline_score:.4f} with all columns "
        f"missing {sums}",
    ]
    if explanation.standard_error:
        lines.append(f"shares are estimates; standard error {explanation.standard_error:.2g}")
    rows = [
        (f"{share:+.4f}", tower, printable(column), printable(value))
        for tower, column, value, share in explanation.ranked()
    ]
    rows.insert(0, ("adds", "of", "column", "value"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines += [
        f"{adds:>{widths[0]}}  {tower:<{widths[1]}}  {column:<{widths[2]}}  {value}".rstrip()
        for adds, tower, column, value in rows
    ]
    return "\n".join(lines)
