"""Write a checkpoint's model card from its facts.

What is generated stands between `<!-- ftmamba:begin NAME -->` and `<!-- ftmamba:end NAME -->`, so
that a later card can replace it and leave alone what people have written around it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hub_cards.facts import ColumnFacts, Figure, ModelCardFacts, ResultRow
from hub_cards.markdown import code, code_cell, fenced, python, text
from hub_cards.metadata import model_metadata

TEMPLATE = "model_card.md.jinja"
PIPELINE_FILE = "pipeline_ftmamba.py"
_PINNED = re.compile(r'^repo, revision = ".*", ".*"$', re.MULTILINE)
_MEGABYTE = 10**6


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card: metadata in YAML, then Markdown.

    Raises:
        ValueError: a figure is missing or not finite, or the example is too long.
    """
    return render(
        TEMPLATE,
        facts=facts,
        metadata=model_metadata(facts),
        with_pipeline=PIPELINE_FILE in facts.code,
        verdict=_verdict(facts.results),
    )


def pin_revision(card: str, repo: str, revision: str) -> str:
    """Return the card with its examples loading that repository at that revision.

    A commit cannot name itself: push the files, pin their commit, push the card.
    """
    line = f"repo, revision = {python(repo)}, {python(revision)}"
    return _PINNED.sub(lambda _: line, card)


def render(template: str, **values: Any) -> str:
    """Fill in one of this folder's templates; every value has to be given, all text is escaped."""
    filled = _environment().get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", filled).strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hub_cards", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    environment.filters |= {
        "text": text,
        "code": code,
        "code_cell": code_cell,
        "python": python,
        "fenced": fenced,
        "figure": _figure,
        "signed": _signed,
        "notes": _notes,
        "share": _share,
        "duration": _duration,
        "count": _count,
        "megabytes": _megabytes,
    }
    return environment


def _verdict(results: Sequence[ResultRow]) -> dict[str, list[str]]:
    """Sort the other models by whether the paired interval tells them from the card's own."""
    sorted_out: dict[str, list[str]] = {"above": [], "below": [], "level": []}
    for row in results[1:]:
        found = row.difference
        if found is None or found.low is None or found.high is None:
            continue
        place = "above" if found.low > 0 else "below" if found.high < 0 else "level"
        sorted_out[place].append(row.name)
    return sorted_out


def _figure(figure: Figure, digits: int = 3) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.{digits}f}"
    # The space that does not break keeps an interval on one line of a narrow cell.
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f},\u00a0{figure.high:.{digits}f}]"


def _signed(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:+.3f}"
    return f"{figure.value:+.3f} [{figure.low:+.3f},\u00a0{figure.high:+.3f}]"


def _share(share: float | None) -> str:
    if share is None:
        return "-"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int) -> str:
    return f"{number:,}"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / _MEGABYTE:,.0f} MB"


def _notes(facts: ColumnFacts) -> str:
    """Say what is particular to a column, beside its name and kind."""
    column = facts.column
    if column.get("popularity_days"):
        days = column["popularity_days"]
        return f"log of 1 + interactions of the last {'day' if days == 1 else f'{days} days'}"
    notes = _notes_of_kind(column)
    if facts.middle is not None:
        low, high = facts.middle
        notes.insert(0, f"90 % from {low:g} to {high:g}")
    return ", ".join(notes)


def _notes_of_kind(column: Mapping[str, Any]) -> list[str]:
    notes = []
    if column.get("vocabulary_size"):
        notes.append(f"{column['vocabulary_size']} ids")
    if column.get("hash_buckets"):
        notes.append(f"of them {column['hash_buckets']} hash buckets")
    if column["kind"] == "numeric":
        notes.append(f"scaling: {column.get('scaling', 'standard')}")
    if column["kind"] == "categories" and column.get("max_length"):
        notes.append(f"at most {column['max_length']} members")
    if column["kind"] == "vector" and column.get("dimension"):
        notes.append(f"width {column['dimension']}")
    return notes
