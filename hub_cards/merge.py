"""Put a generated card in the place of an earlier one without losing what a person wrote there.

A generated section stands between two lines of its own:

    <!-- ftmamba:begin results -->
    ...
    <!-- ftmamba:end results -->

What is between them is replaced; what is outside them is a person's and stays. Of the metadata,
keys that no generated card has stay, lists are joined, and the licence and language that a person
chose win.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml

logger = logging.getLogger(__name__)

KEPT_KEYS = ("license", "license_name", "license_link", "language", "thumbnail")
"""Metadata that a person's choice wins over the generated one."""

UNDER_WAY = "<!-- ftmamba:under-way -->"
"""Stands in a section of a card whose run is not finished."""

PROVISIONAL_TITLE = "<!-- ftmamba:title -->"
"""Stands behind a title that the next card replaces."""

_MARKER = re.compile(r"[ \t]*<!--\s*ftmamba:(begin|end)\s+([\w-]+)\s*-->[ \t]*")
_FENCE = "---"


@dataclass(frozen=True)
class Part:
    """A stretch of a card's body: a generated section, or a person's text where `name` is empty."""

    name: str
    text: str

    def render(self) -> str:
        """Return the part as it stands in a card."""
        return section(self.name, self.text) if self.name else self.text


def section(name: str, text: str) -> str:
    """Return a generated section between its markers."""
    inside = text.strip("\n")
    between = f"{inside}\n" if inside else ""
    return f"<!-- ftmamba:begin {name} -->\n{between}<!-- ftmamba:end {name} -->\n"


def merge_card(generated: str, existing: str) -> str:
    """Return the card to publish where `existing` is published already.

    Sections take the place of the sections of the same name. One that is new comes after the
    section that it follows in the generated card, or at the end, and brings its heading. One that
    is generated no more leaves its empty markers, invisible to readers, to keep its place. Text
    outside the markers is that of the existing card, unless its body is empty.

    A card with `UNDER_WAY` in it, as a run pushes before its end, says little: sections that it
    lacks stay as they are.

    Args:
        generated: metadata and body, its sections between markers.
        existing: what is there; an empty text where nothing is.
    """
    new_head, new_body = split_metadata(generated)
    old_head, old_body = split_metadata(existing.replace("\r\n", "\n"))
    old_body = _with_title_of(new_body, old_body)
    new, old = parts_of(new_body), parts_of(old_body)
    if UNDER_WAY not in generated:
        kept = {"", *(part.name for part in new)}
        old = [part if part.name in kept else Part(part.name, "") for part in old]
    merged = _merged_parts(new, old, old_body)
    body = _render(merged) if old_body.strip() else new_body
    head = _merged_metadata(new_head, old_head)
    return f"{_FENCE}\n{head}{_FENCE}\n{body}" if head else body


def _with_title_of(new_body: str, old_body: str) -> str:
    """Return the old body with the new title, where its own was one for now."""
    title = re.search(r"^# .*$", new_body, re.MULTILINE)
    if title is None:
        return old_body
    for_now = re.compile(rf"^# .*{re.escape(PROVISIONAL_TITLE)}[ \t]*$", re.MULTILINE)
    return for_now.sub(lambda _: title[0], old_body)


def split_metadata(card: str) -> tuple[str, str]:
    """Return the YAML at the head of a card, without its fences, and the body."""
    lines = card.lstrip("\ufeff").splitlines(keepends=True)
    if not lines or lines[0].strip() != _FENCE:
        return "", card
    for number, line in enumerate(lines[1:], start=1):
        if line.strip() == _FENCE:
            return "".join(lines[1:number]), "".join(lines[number + 1 :])
    return "", card


def parts_of(body: str) -> list[Part]:
    """Cut a body into generated sections and the texts between them.

    A marker without its other half is left out and said so; the text behind it counts as a
    person's, so that nothing is lost.
    """
    parts: list[Part] = []
    lines: list[str] = []
    opened = ""

    def close(name: str) -> None:
        if lines:
            parts.append(Part(name, "".join(lines)))
        elif name:
            parts.append(Part(name, ""))
        lines.clear()

    for line in body.splitlines(keepends=True):
        marker = _MARKER.fullmatch(line.rstrip("\n"))
        if marker is None:
            lines.append(line)
            continue
        kind, name = marker.groups()
        is_whole = opened == name if kind == "end" else not opened
        if not is_whole:
            logger.warning(
                "the card's marker of section %r lacks its other half; what stands there is kept "
                "as it is: delete it by hand if it is said twice now",
                opened or name,
            )
        close(opened if kind == "end" and is_whole else "")
        opened = name if kind == "begin" else ""
    if opened:
        logger.warning("the card's section %r has no end; its text is kept as it is", opened)
    close("")
    return parts


def _merged_parts(new: Sequence[Part], old: Sequence[Part], old_body: str) -> list[Part]:
    generated = {part.name: part for part in new if part.name}
    placed: set[str] = set()
    merged: list[Part] = []
    for part in old:
        if part.name in placed:
            continue
        placed |= {part.name} if part.name else set()
        merged.append(generated.get(part.name, part) if part.name else part)
    names = list(generated)
    leads = _leads(new, old_body)
    for position, name in enumerate(names):
        if name not in placed:
            place = _place(merged, names, position)
            merged[place:place] = [*leads[name], generated[name]]
            placed.add(name)
    return merged


def _leads(new: Sequence[Part], old_body: str) -> dict[str, list[Part]]:
    """Return what stands above each generated section, such as its heading, if the card lacks it.

    A card has one title: another is left out.
    """
    has_title = re.search(r"^# ", old_body, re.MULTILINE) is not None
    leads: dict[str, list[Part]] = {}
    for above, part in pairwise([Part("", ""), *new]):
        text = "" if above.name else above.text
        if has_title:
            text = re.sub(r"^# .*\n?", "", text, flags=re.MULTILINE)
        is_new = text.strip() and text.strip() not in old_body
        leads[part.name] = [Part("", f"{text.strip()}\n")] if is_new else []
    return leads


def _place(merged: Sequence[Part], names: Sequence[str], position: int) -> int:
    """Say where a new section goes: after the one it follows, else before the next, else last."""
    at = {part.name: index for index, part in enumerate(merged) if part.name}
    for before in reversed(names[:position]):
        if before in at:
            return at[before] + 1
    for behind in names[position + 1 :]:
        if behind in at:
            return at[behind]
    return len(merged)


def _render(parts: Sequence[Part]) -> str:
    """Join parts, with an empty line wherever a section would touch what is above it."""
    body = ""
    for part in parts:
        text = part.render()
        if body and not body.endswith("\n"):
            body += "\n"
        if body and not body.endswith("\n\n") and not text.startswith("\n"):
            body += "\n"
        body += text
    return body.rstrip("\n") + "\n"


def _merged_metadata(new_text: str, old_text: str) -> str:
    new, old = _mapping(new_text), _mapping(old_text)
    merged: dict[str, Any] = dict(new)
    for key, value in old.items():
        if key not in new or key in KEPT_KEYS:
            merged[key] = value
        elif isinstance(value, list) and isinstance(new[key], list) and key != "model-index":
            merged[key] = [*new[key], *(one for one in value if one not in new[key])]
    if merged == new:
        return new_text
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        logger.warning(
            "the metadata of the card is no valid YAML and is replaced: %s",
            " ".join(str(error).split()),
        )
        return {}
    return found if isinstance(found, dict) else {}
