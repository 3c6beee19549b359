"""Replace an earlier card by a generated one without losing what a person wrote in it.

A generated section stands between two lines of its own:

    <!-- ftmamba:begin results -->
    ...
    <!-- ftmamba:end results -->

What is between them is replaced; what is outside them is a person's and stays. Of the metadata,
keys that no generated card has stay, lists are joined, and the licence and language that a person
chose win. (`huggingface_hub.metadata_update` knows metadata only, and no sections.)
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

logger = logging.getLogger(__name__)

KEPT_KEYS = ("license", "license_name", "license_link", "language", "thumbnail")
"""Metadata that a person's choice wins over the generated one."""

UNDER_WAY = "<!-- ftmamba:under-way -->"
"""Stands in a section of a card whose run is not finished."""

PROVISIONAL_TITLE = "<!-- ftmamba:title -->"
"""Stands behind a title that the next card replaces."""

FIRST_MARK = "<!-- ftmamba:begin "
_MARKER = re.compile(r"[ \t]*<!--\s*ftmamba:(begin|end)\s+([\w-]+)\s*-->[ \t]*")
_FENCE = "---"


@dataclass(frozen=True)
class Part:
    """A stretch of a card's body: a generated section, or a person's text where `name` is empty."""

    name: str
    text: str


def section(name: str, text: str) -> str:
    """Return a generated section between its markers."""
    inside = text.strip("\n")
    between = f"{inside}\n" if inside else ""
    return f"<!-- ftmamba:begin {name} -->\n{between}<!-- ftmamba:end {name} -->\n"


def merge_card(generated: str, existing: str) -> str:
    """Return the card to publish where `existing` is published already.

    Sections replace the sections of the same name. A new one comes after the section that it
    follows in the generated card, or at the end, with its heading. One that is no longer generated
    leaves its empty markers, invisible to readers, so that its position is not lost. Text outside
    the markers is that of the existing card, unless its body is empty.

    A card with `UNDER_WAY` in it, as a run pushes before its end, has few sections: those that it
    lacks stay as they are.
    """
    new_head, new_body = split_metadata(generated)
    old_head, old_body = split_metadata(existing.replace("\r\n", "\n"))
    if title := re.search(r"^# .*$", new_body, re.MULTILINE):
        provisional = re.compile(rf"^# .*{re.escape(PROVISIONAL_TITLE)}[ \t]*$", re.MULTILINE)
        old_body = provisional.sub(lambda _: title[0], old_body)
    new, old = parts_of(new_body), parts_of(old_body)
    if UNDER_WAY not in generated:
        kept = {"", *(part.name for part in new)}
        old = [part if part.name in kept else Part(part.name, "") for part in old]
    body = _render(_merged_parts(new, old, old_body)) if old_body.strip() else new_body
    head = _merged_metadata(new_head, old_head)
    return f"{_FENCE}\n{head}{_FENCE}\n{body}" if head else body


def split_metadata(card: str) -> tuple[str, str]:
    """Return the YAML at the head of a card, without its fences, and the body."""
    lines = card.lstrip("\ufeff").splitlines(keepends=True)
    if lines and lines[0].strip() == _FENCE:
        for number, line in enumerate(lines[1:], start=1):
            if line.strip() == _FENCE:
                return "".join(lines[1:number]), "".join(lines[number + 1 :])
    return "", card


def parts_of(body: str) -> list[Part]:
    """Cut a body into generated sections and the texts between them.

    A marker without its other half is left out with a warning; the text after it counts as a
    person's, so that nothing is lost.
    """
    parts: list[Part] = []
    lines: list[str] = []
    opened = ""

    def close(name: str) -> None:
        if lines or name:
            parts.append(Part(name, "".join(lines)))
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
                "the card's marker of section %r lacks its other half; the text there is kept: "
                "delete it if it is in the card twice now",
                opened or name,
            )
        close(opened if kind == "end" and is_whole else "")
        opened = name if kind == "begin" else ""
    if opened:
        logger.warning("the card's section %r has no end; its text is kept", opened)
    close("")
    return parts


def _merged_parts(new: Sequence[Part], old: Sequence[Part], old_body: str) -> list[Part]:
    generated = {part.name: part for part in new if part.name}
    merged: list[Part] = []
    for part in old:
        if not part.name or all(part.name != one.name for one in merged):
            merged.append(generated.get(part.name, part) if part.name else part)
    has_title = re.search(r"^# ", old_body, re.MULTILINE) is not None
    names = list(generated)
    for position, name in enumerate(names):
        at = {part.name: index for index, part in enumerate(merged) if part.name}
        if name in at:
            continue
        # After the section that it follows, else before the next one, else at the end.
        before = [at[one] + 1 for one in reversed(names[:position]) if one in at]
        behind = [at[one] for one in names[position + 1 :] if one in at]
        index = [*before[:1], *behind[:1], len(merged)][0]
        # What stands above it, such as a heading, comes with it where the card lacks it. A card
        # has one title.
        above = new[new.index(generated[name]) - 1] if new[0].name != name else Part("", "")
        lead = "" if above.name else above.text
        if has_title:
            lead = re.sub(r"^# .*\n?", "", lead, flags=re.MULTILINE)
        is_new = lead.strip() and lead.strip() not in old_body
        merged[index:index] = [
            *([Part("", f"{lead.strip()}\n")] if is_new else []),
            generated[name],
        ]
    return merged


def _render(parts: Sequence[Part]) -> str:
    """Join parts, with an empty line wherever a section would touch what is above it."""
    body = ""
    for part in parts:
        text = section(part.name, part.text) if part.name else part.text
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
        reason = " ".join(str(error).split())
        logger.warning("the card's metadata is not valid YAML and is replaced: %s", reason)
        return {}
    return found if isinstance(found, dict) else {}
