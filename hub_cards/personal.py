"""Columns that look personal: their vocabularies would be published with the checkpoint."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

MOST_VALUES = 20_000
"""Values of a column that are looked at, the most frequent first."""

FEW = 0.02
MOST = 0.5
ENOUGH = 50
"""Fewer values than this are a list of choices, not free ids."""

_EMAIL = re.compile(r"[^\s@,;]+@[^\s@,;]+\.[A-Za-z]{2,}")
_PHONE = re.compile(r"(?:\+|\(?0)[\d\s()./-]{6,18}\d|\(?\d{3}\)?[\s.-]+\d{3}[\s.-]\d{4}")
_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_HEX = re.compile(r"(?=[a-f]*\d)[0-9a-f]{12,}", re.IGNORECASE)
_NUMBER = re.compile(r"\d{6,}")
_NAMES = re.compile(
    r"(?:^|_)(?:e?_?mail|phone|mobile|tel|ssn|passport|iban|ip|ip_address|address|street|surname|"
    r"first_?name|last_?name|full_?name|birth_?date|dob)(?:$|_)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PersonalColumn:
    """A column whose published values look like somebody's own.

    Attributes:
        tower: `user` or `item`.
        name: of the column.
        why: what its values look like.
        n_values: how many the vocabulary holds.
    """

    tower: str
    name: str
    why: str
    n_values: int


def personal_columns(folder: Path) -> list[PersonalColumn]:
    """Find the columns of a checkpoint whose vocabularies look personal; no value is told."""
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    keys = {"user": extractor.user_key, "item": extractor.item_key}
    found = []
    for tower, key in keys.items():
        for column in extractor.columns(tower):
            if column.kind not in ("categorical", "categories"):
                continue
            values = extractor.known_values(tower, column.name)
            is_user_key = tower == "user" and column.name == key
            why = "the key of the users" if is_user_key else looks_like(column.name, values, tower)
            if why and values:
                found.append(PersonalColumn(tower, column.name, why, len(values)))
    return found


def looks_like(name: str, values: Sequence[str], tower: str) -> str:
    """Say what a column's values look like, an empty text where they look harmless.

    Ids count only where they are a user's: an item's are its own.
    """
    sample = list(islice(values, MOST_VALUES))
    if _share(sample, _EMAIL) > FEW:
        return "e-mail addresses"
    if _share(sample, _PHONE) > MOST:
        return "telephone numbers"
    if _share(sample, _ADDRESS) > MOST:
        return "network addresses"
    if tower == "user" and len(sample) >= ENOUGH and _are_ids(sample):
        return "free ids"
    return "by its name, personal data" if _NAMES.search(name) else ""


def warning_of(columns: Sequence[PersonalColumn]) -> str:
    """Return one warning for all columns that were found."""
    told = "; ".join(
        f"{one.name!r} of the {one.tower}s ({one.n_values} values: {one.why})" for one in columns
    )
    return (
        f"these columns look personal, and their values are published in the vocabularies: {told}. "
        "Leave such a column out of the schema, or give it hash_buckets and max_vocabulary, and "
        "train again before you push to a public repository"
    )


def _are_ids(sample: Sequence[str]) -> bool:
    return any(_share(sample, pattern) > MOST for pattern in (_UUID, _HEX, _NUMBER))


def _share(sample: Iterable[str], pattern: re.Pattern[str]) -> float:
    matches = [bool(pattern.fullmatch(text.strip())) for text in sample]
    return sum(matches) / len(matches) if matches else 0.0
