"""Tables of the figures, as plain text and as Markdown."""

from collections.abc import Iterable, Sequence

from .figures import Verdict
from .measure import Spread
from .targets import SHAPES, RatioTarget

MARKS = {True: "✓", False: "✗", None: ""}
WORDS = {True: "pass", False: "SHORT", None: ""}


def plain_verdicts(rows: Iterable[tuple[RatioTarget, Sequence[Verdict]]]) -> str:
    """Return the table of the targets for a terminal."""
    body = [[target.title, *(_plain(one) for one in found)] for target, found in rows]
    return aligned([["d 64, one thread", *map(str, SHAPES)], *body])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_verdict(found: Verdict) -> str:
    """Return `1.43 [1.40, 1.45] of 1.1 ✓`."""
    if found.ratio is None:
        return "-" if found.at_least is None else f"{found.why_not} (target {found.at_least:g})"
    target = "" if found.at_least is None else f", target {found.at_least:g} {MARKS[found.passes]}"
    return f"{spread(found.ratio)}{target}"


def spread(values: Spread) -> str:
    """Return `median [quartile, quartile]`."""
    return f"**{short(values.median)}** [{short(values.low)}, {short(values.high)}]"


def short(value: float) -> str:
    """Return three digits, none after the point from 100 on."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _plain(found: Verdict) -> str:
    target = "-" if found.at_least is None else f"{found.at_least:g}"
    measured = "-" if found.ratio is None else short(found.ratio.median)
    return f"{measured} / {target} {WORDS[found.passes]}".rstrip()
