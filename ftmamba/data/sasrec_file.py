"""Sequences as SASRec's authors and their followers publish them, and what lies beside them.

A line holds a user and one item or more, apart by spaces; a user's items stand oldest first, in one
line or in many. There are no times: the order of the file is the order.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables

logger = logging.getLogger(__name__)

ML_1M_LICENCE = (
    "MovieLens-1M is GroupLens' data, for research: cite Harper & Konstan (2015), do not "
    "redistribute it, and ask before any commercial use (https://grouplens.org/datasets/movielens)"
)
USER_COLUMNS = {
    "gender": "categorical",
    "age": "categorical",
    "occupation": "categorical",
    "zip_code": "categorical",
}
FILM_COLUMNS = {
    "item_id": "categorical",
    "release_year": "numeric",
    "genres": {"kind": "categories", "separator": "|"},
}
Facts: TypeAlias = Mapping[str, Sequence[Any]]
"""By the key of a user or item, the values of its columns."""


def ml_1m(
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,  # noqa: ARG001 - nothing is downloaded
    *,
    schema: Schema | Mapping[str, object] | None = None,
    positive_threshold: float | None = None,
) -> Tables:
    """Return MovieLens-1M in SASRec's order: 6,040 users, 3,416 films, 999,611 events.

    Gender, age group, occupation and zip code of the users are joined where `users.dat` and
    `sas_to_original_users.txt` lie beside `ml-1m.txt`, title, year and genres of the films where
    `movies.dat` and `sas_to_original_items.txt` do.

    Args:
        folder: holds `ml-1m.txt`.
        cache_dir: not used.
        schema: which columns to use and how; by default all there are.
        positive_threshold: refused by `load_tables`: there are no ratings.

    Raises:
        FileNotFoundError: no folder is named, or it lacks the file.
        ValueError: a line that cannot be read.
    """
    place = _folder(folder, "ml-1m", "ml-1m.txt")
    _tell_licence(ML_1M_LICENCE)
    users, items, events = read_sequences(place / "ml-1m.txt")
    people = _joined(place, "sas_to_original_users.txt", "users.dat", _people)
    films = _joined(place, "sas_to_original_items.txt", "movies.dat", _films)
    user_names, film_names = list(USER_COLUMNS), ["title", "release_year", "genres"]
    own_schema = {
        "users": {
            "key": "user_id",
            "columns": USER_COLUMNS if people else {"user_id": "categorical"},
        },
        "items": {
            "key": "item_id",
            "columns": FILM_COLUMNS if films else {"item_id": "categorical"},
            **({"title": "title"} if films else {}),
        },
        "interactions": {"user": "user_id", "item": "item_id"},
    }
    return load_tables(
        _table("user_id", users, user_names, people),
        _table("item_id", items, film_names, films),
        events,
        schema or own_schema,
        positive_threshold=positive_threshold,
    )


def amazon_beauty(
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,  # noqa: ARG001 - nothing is downloaded
    *,
    schema: Schema | Mapping[str, object] | None = None,
    positive_threshold: float | None = None,
) -> Tables:
    """Return Amazon Beauty, 5-core, as S3-Rec has it: 22,363 users, 12,101 items, 198,502 events.

    The items' categories and brands, as ids, are joined where `Beauty_item2attributes.json` lies
    beside `Beauty.txt`.

    Args:
        folder: holds `Beauty.txt`.
        cache_dir: not used.
        schema: which columns to use and how; by default all there are.
        positive_threshold: refused by `load_tables`: there are no ratings.

    Raises:
        FileNotFoundError: no folder is named, or it lacks the file.
        ValueError: a line that cannot be read.
    """
    place = _folder(folder, "amazon-beauty", "Beauty.txt")
    users, items, events = read_sequences(place / "Beauty.txt")
    facts = _attributes(place / "Beauty_item2attributes.json")
    columns: dict[str, object] = {"item_id": "categorical"}
    if facts:
        columns["attributes"] = {"kind": "categories", "separator": " "}
    own_schema = {
        "users": {"key": "user_id", "columns": {"user_id": "categorical"}},
        "items": {"key": "item_id", "columns": columns},
        "interactions": {"user": "user_id", "item": "item_id"},
    }
    return load_tables(
        _table("user_id", users, [], {}),
        _table("item_id", items, ["attributes"], facts),
        events,
        schema or own_schema,
        positive_threshold=positive_threshold,
    )


def read_sequences(path: Path) -> tuple[list[str], list[str], pa.Table]:
    """Read a file of sequences.

    Returns:
        The users and the items in the order in which they first occur, and the table of events,
        `user_id` and `item_id`, in the order of the file.

    Raises:
        ValueError: a line without an item, or no line at all.
    """
    users: list[str] = []
    items: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if len(words) == 1:
                raise ValueError(
                    f"file '{path}', line {number}: a user must be followed by at least one item, "
                    f"got {words[0]!r} alone; complete or remove the line"
                )
            users += words[:1] * (len(words) - 1)
            items += words[1:]
    if not users:
        raise ValueError(f"file '{path}' is empty; each line must hold a user and its items")
    events = pa.table({"user_id": users, "item_id": items})
    return list(dict.fromkeys(users)), list(dict.fromkeys(items)), events


def _folder(folder: str | Path | None, name: str, file: str) -> Path:
    """Return the folder, which must hold the file."""
    if folder is None:
        raise FileNotFoundError(
            f"data set {name!r} is not downloaded by this library; get {file} and name its folder "
            "as data.folder"
        )
    place = Path(folder).expanduser()
    if not (place / file).is_file():
        raise FileNotFoundError(
            f"folder '{place}' holds no {file}, the sequences of the data set {name!r}; name "
            "another folder as data.folder"
        )
    return place


def _joined(folder: Path, ids: str, facts: str, read: Any) -> Facts:
    """Return the facts by the keys of the sequences; none unless both files are there."""
    there = [name for name in (ids, facts) if (folder / name).is_file()]
    if len(there) == 1:
        missing = facts if there == [ids] else ids
        logger.warning(
            "folder '%s' holds %s but not %s, so neither is used", folder, there[0], missing
        )
    if len(there) < 2:
        return {}
    originals = {
        fields[0]: fields[1] for fields in _fields(folder / ids, None, 2, encoding="utf-8")
    }
    known: Facts = read(folder / facts)
    return {key: known[original] for key, original in originals.items() if original in known}


def _people(path: Path) -> Facts:
    return {fields[0]: fields[1:] for fields in _fields(path, "::", 5, encoding="latin-1")}


def _films(path: Path) -> Facts:
    return {
        key: (title, _year(title), genres)
        for key, title, genres in _fields(path, "::", 3, encoding="latin-1")
    }


def _year(title: str) -> int | None:
    """Return the year at the end of "Toy Story (1995)"."""
    digits = title.strip()[-5:-1]
    return int(digits) if title.strip()[-6:-5] == "(" and digits.isdecimal() else None


def _fields(path: Path, separator: str | None, n: int, *, encoding: str) -> list[list[str]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding).split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(line.strip().split(separator))
        if len(rows[-1]) != n:
            raise ValueError(
                f"file '{path}', line {number}: must have {n} fields, got {len(rows[-1])}: "
                f"{line.strip()[:60]!r}; take the file as it was published"
            )
    return rows


def _attributes(path: Path) -> Facts:
    if not path.is_file():
        return {}
    try:
        attributes = json.loads(path.read_text("utf-8"))
        return {key: (" ".join(map(str, ids)),) for key, ids in attributes.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"file '{path}' must hold a JSON object of item -> list of attributes: {error}; take "
            "the file as it was published, or remove it"
        ) from error


def _table(key: str, keys: list[str], names: Sequence[str], facts: Facts) -> pa.Table:
    """Return a table of the keys and, if there are facts, the named columns."""
    columns: dict[str, list[Any]] = {key: keys}
    if facts:
        nothing = (None,) * len(names)
        rows = [facts.get(one, nothing) for one in keys]
        columns |= dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns)


@functools.cache
def _tell_licence(licence: str) -> None:
    logger.warning(licence)
