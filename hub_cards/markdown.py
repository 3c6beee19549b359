"""Foreign text in Markdown: shown as it is, never as markup of any kind.

Titles, column names and values come from people's tables. Each filter returns `Markup`, what Jinja
will not escape again; any text that reaches a template without a filter is escaped for HTML.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal

from markupsafe import Markup, escape

LONGEST_TEXT = 300
LONGEST_LITERAL = 2_000


def one_line(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return a text on one line, without control characters, cut where it is too long."""
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    line = " ".join(printable.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def text(value: object) -> Markup:
    """Return prose that stays within its line, its table cell and its tags."""
    if isinstance(value, Markup):
        return value
    escaped = str(escape(one_line(value)))
    escaped = re.sub(r"([\\`*\[\]|~$^])", r"\\\1", escaped)
    # At the start of a line these make headings, lists and rules.
    escaped = re.sub(r"^([#+=-])", r"\\\1", escaped)
    escaped = re.sub(r"^(\d+)([.)])", r"\1\\\2", escaped)
    # Inside a word an underscore is harmless, and legible unescaped.
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
    return Markup(escaped)


def code(value: object) -> Markup:
    """Return a code span."""
    line = one_line(value) or " "
    fence = _longer_than_any_in(line, least=1)
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return Markup(_without_comments(f"{fence}{gap}{line}{gap}{fence}"))


def code_cell(value: object) -> Markup:
    """Return a code span for a table's cell, where alone a bar needs a backslash."""
    return Markup(code(value).replace("|", "\\|"))


def python(value: object) -> Markup:
    """Write a value as Python code; texts in double quotes, as formatters want them."""
    literal = _literal(value)
    if len(literal) > LONGEST_LITERAL:
        raise ValueError(
            f"an example on a card must be short, got {len(literal)} characters: {literal[:80]}…; "
            "name a short record as the recipe's examples.record"
        )
    return Markup(_without_comments(literal))


def fenced(value: object, language: str = "") -> Markup:
    """Return a block of code whose fence is longer than any in it."""
    body = str(value).rstrip("\n")
    fence = _longer_than_any_in(body, least=3)
    return Markup(_without_comments(f"{fence}{language}\n{body}\n{fence}"))


def _longer_than_any_in(body: str, *, least: int) -> str:
    """Return so many backticks that none in the body closes what they open."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", body)), default=0))


def _literal(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_literal(key)}: {_literal(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, datetime | date):
        value = value.isoformat()
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False)
        return quoted.replace("<!--", "\\u003c!--").replace("-->", "--\\u003e")
    if isinstance(value, Decimal):
        value = float(value)
    return "None" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _without_comments(markdown: str) -> str:
    """Break what a reader of our own section marks could take for one."""
    return markdown.replace("<!--", "<! --").replace("-->", "-- >")
