"""The public data sets known by name: MovieLens-100K, MovieLens-1M and Amazon Beauty.

MovieLens-100K (GroupLens, 1998) has 943 users, 1,682 films and 100,000 ratings with their times.
The other two are sequences as SASRec's authors and their followers publish them: a line holds a
user and one item or more, apart by spaces; a user's items stand oldest first, in one line or in
many. There are no times: the order of the file is the order.
"""

import functools
import hashlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from ftmamba.data.arrow_files import cache_folder, place_folder
from ftmamba.data.readers import read_sequences
from ftmamba.data.schema import ROW_ORDER, Schema
from ftmamba.data.tables import Tables, load_tables

logger = logging.getLogger(__name__)

_LICENCE = (
    "{} is GroupLens' data, for research: cite Harper & Konstan (2015), do not "
    "redistribute it, and ask before any commercial use (https://grouplens.org/datasets/movielens)"
)
LICENCES = {
    "movielens-100k": _LICENCE.format("MovieLens-100K"),
    "ml-1m": _LICENCE.format("MovieLens-1M"),
}
"""What is logged once when a data set is read."""

OFFICIAL_ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
OFFICIAL_FILES = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}
RECBOLE_FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
"""SHA-256 of each file in either layout."""

_CONNECT_SECONDS, _PIP_SECONDS = 5, 300

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_PEOPLE = ("gender", "occupation", "zip_code")
SCHEMA_100K = {
    "users": {
        "key": "user_id",
        "columns": {"age": "numeric", **dict.fromkeys(_PEOPLE, "categorical")},
    },
    "items": {
        "key": "item_id",
        "title": "title",
        "columns": {"release_year": "numeric", "genres": {"kind": "categories", "separator": " "}},
    },
    "interactions": {"user": "user_id", "item": "item_id", "time": "timestamp", "weight": "rating"},
}
Facts: TypeAlias = tuple[Mapping[str, object], Mapping[str, Sequence[Any]]]
"""The kind of each column, None for a title, and by the key of a row the columns' values."""


def movielens_100k(
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,
    *,
    schema: Schema | Mapping[str, object] | None = None,
    positive_threshold: float | None = None,
) -> Tables:
    """Return MovieLens-100K, the same tables wherever the files come from.

    The files are read from `folder`; else from the cache; else from the official archive; else
    from the copy inside the PyPI package recbole. Every file is checked by its SHA-256.

    Args:
        folder: holds u.data, u.item, u.user, or ml-100k.inter, .item, .user.
        cache_dir: where downloads are kept; `cache_folder()` if None.
        schema: which columns to use and how, instead of `SCHEMA_100K`.
        positive_threshold: keep ratings of at least this; None keeps all.

    Raises:
        FileNotFoundError: the files are neither there nor could be downloaded.
        ValueError: a file is damaged.
    """
    _log_licence("movielens-100k")
    if folder is not None:
        source = Path(folder).expanduser()
    else:
        source = cache_folder(cache_dir) / "movielens-100k"
        if not source.is_dir():
            place_folder(source, _download)
    for files, read in ((OFFICIAL_FILES, _read_official), (RECBOLE_FILES, _read_recbole)):
        if all((source / name).is_file() for name in files):
            for name, digest in files.items():
                _check_digest((source / name).read_bytes(), digest, str(source / name))
            users, items, events = read(source)
            return load_tables(
                users, items, events, schema or SCHEMA_100K, positive_threshold=positive_threshold
            )
    raise FileNotFoundError(
        f"folder '{source}' holds MovieLens-100K in neither layout; it needs "
        f"{', '.join(OFFICIAL_FILES)}, or {', '.join(RECBOLE_FILES)}"
    )


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
    `movies.dat` and `sas_to_original_items.txt` do. There are no ratings for a threshold.

    Raises:
        FileNotFoundError: no folder is named, or it lacks `ml-1m.txt`.
        ValueError: a line that cannot be read.
    """
    source = _folder(folder, "ml-1m", "ml-1m.txt")
    _log_licence("ml-1m")
    titled = _joined(source, "sas_to_original_items.txt", "movies.dat", 3)
    user_kinds = dict.fromkeys(("gender", "age", "occupation", "zip_code"), "categorical")
    item_kinds = {
        "item_id": "categorical",
        "title": None,
        "release_year": "numeric",
        "genres": {"kind": "categories", "separator": "|"},
    }
    return _load_sequences(
        source / "ml-1m.txt",
        (user_kinds, _joined(source, "sas_to_original_users.txt", "users.dat", 5)),
        (item_kinds, {key: (film[0], _year(film[0]), film[1]) for key, film in titled.items()}),
        schema,
        positive_threshold,
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
    beside `Beauty.txt`. There are no ratings for a threshold. Errors are as of `ml_1m`.
    """
    source = _folder(folder, "amazon-beauty", "Beauty.txt")
    path = source / "Beauty_item2attributes.json"
    ids_of: dict[str, tuple[str]] = {}
    if path.is_file():
        try:
            attributes = json.loads(path.read_text("utf-8"))
            ids_of = {key: (" ".join(map(str, ids)),) for key, ids in attributes.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"file '{path}' must hold a JSON object of item -> list of attributes: {error}; "
                "take the file as it was published, or remove it"
            ) from error
    kind = {"kind": "categories", "separator": " "}
    return _load_sequences(
        source / "Beauty.txt",
        ({}, {}),
        ({"item_id": "categorical", "attributes": kind}, ids_of),
        schema,
        positive_threshold,
    )


NAMED_DATASETS: dict[str, Callable[..., Tables]] = {
    "movielens-100k": movielens_100k,
    "ml-1m": ml_1m,
    "amazon-beauty": amazon_beauty,
}
"""The loader of each data set, by the name that a recipe gives."""


def _read_official(folder: Path) -> list[pa.Table]:
    """Read GroupLens' own layout: no header, "|" between fields, Latin-1."""
    films = [
        (
            *film[:2],
            " ".join(genre for genre, flag in zip(_GENRES, film[5:], strict=True) if flag == "1"),
        )
        for film in _rows(folder / "u.item", "|", 5 + len(_GENRES), encoding="latin-1")
    ]
    people = _rows(folder / "u.user", "|", 5, encoding="latin-1")
    return _raw_tables(people, films, _rows(folder / "u.data", "\t", 4))


def _read_recbole(folder: Path) -> list[pa.Table]:
    """Read RecBole's layout: a header of `name:type`, tabs, UTF-8, the year cut off the title."""
    people, films, ratings = (
        _rows(folder / f"ml-100k.{name}", "\t", n)[1:]
        for name, n in (("user", 5), ("item", 4), ("inter", 4))
    )
    # RecBole cut the last bracket off every title; put back, it is GroupLens' title again.
    titled = [
        (key, "unknown" if title == "unkonwn" else f"{title} ({year})", genres)
        for key, title, year, genres in films
    ]
    return _raw_tables(people, titled, ratings)


def _raw_tables(
    people: Sequence[Sequence[str]],
    films: Sequence[Sequence[str]],
    ratings: Sequence[Sequence[str]],
) -> list[pa.Table]:
    """Return users, items and interactions; of a film there are key, title and genres."""
    dated = [(key, title, genres, _year(title)) for key, title, genres in films]
    names = (
        ("user_id", "age", "gender", "occupation", "zip_code"),
        ("item_id", "title", "genres", "release_year"),
        ("user_id", "item_id", "rating", "timestamp"),
    )
    return [
        pa.table(list(map(list, zip(*rows, strict=True))), names=columns)
        for rows, columns in zip((people, dated, ratings), names, strict=True)
    ]


def _download(folder: Path) -> None:
    """Fill a folder with MovieLens-100K from the first source that answers."""
    failures = []
    for members in (_official_members, _recbole_members):
        try:
            for name, content, digest in members():
                _check_digest(content, digest, name)
                (folder / name).write_bytes(content)
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            failures.append(str(error))
        else:
            return
    raise FileNotFoundError(
        "MovieLens-100K could not be downloaded; unpack the archive yourself and name its folder. "
        f"Tried: {'; '.join(failures)}"
    )


def _official_members() -> Iterator[tuple[str, bytes, str]]:
    with tempfile.TemporaryFile() as content:
        try:
            with urllib.request.urlopen(OFFICIAL_ARCHIVE, timeout=_CONNECT_SECONDS) as answer:
                content.write(answer.read())
        except OSError as error:
            raise OSError(f"{OFFICIAL_ARCHIVE}: {error}") from error
        with zipfile.ZipFile(content) as archive:
            for name, digest in OFFICIAL_FILES.items():
                yield name, archive.read(f"ml-100k/{name}"), digest


def _recbole_members() -> Iterator[tuple[str, bytes, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, RECBOLE]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OSError(f"pip download {RECBOLE}: {reason}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            for name, digest in RECBOLE_FILES.items():
                yield name, archive.read(f"recbole/dataset_example/ml-100k/{name}"), digest


def _check_digest(content: bytes, digest: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"file '{name}' of MovieLens-100K is damaged: its SHA-256 must be {digest}, it is "
            f"{found}; delete it and fetch it again"
        )


def _load_sequences(
    path: Path,
    users: Facts,
    items: Facts,
    schema: Schema | Mapping[str, object] | None,
    positive_threshold: float | None,
) -> Tables:
    """Load sequences and the facts; a table without facts has its key as a category."""
    events = read_sequences(path)
    user_keys, item_keys = (
        events.column(name).unique().to_pylist() for name in ("user_id", "item_id")
    )
    own: dict[str, dict[str, object]] = {"interactions": {"user": "user_id", "item": "item_id"}}
    tables = {}
    for table, key, keys, (all_kinds, facts) in (
        ("users", "user_id", user_keys, users), ("items", "item_id", item_keys, items)
    ):  # fmt: skip
        kinds = all_kinds if facts else {key: "categorical"}
        names = [name for name in kinds if name != key]
        rows = [facts.get(one, (None,) * len(names)) for one in keys]
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        tables[table] = pa.table({key: keys, **columns})
        own[table] = {"key": key, "columns": {name: kind for name, kind in kinds.items() if kind}}
        if "title" in kinds:
            own[table]["title"] = "title"
    given = schema if isinstance(schema, Schema) else Schema.from_dict(schema or own)
    # A recipe that names no order means that of the file, which is in order.
    ordered = replace(given, interactions=replace(given.interactions, order=ROW_ORDER))
    return load_tables(
        **tables, interactions=events, schema=ordered, positive_threshold=positive_threshold
    )


def _folder(folder: str | Path | None, name: str, file: str) -> Path:
    """Return the folder, which must hold the file."""
    if folder is None:
        raise FileNotFoundError(
            f"data set {name!r} is not downloaded by this library; get {file} and name its folder "
            "as data.folder"
        )
    source = Path(folder).expanduser()
    if not (source / file).is_file():
        raise FileNotFoundError(
            f"folder '{source}' holds no {file}, the sequences of the data set {name!r}; name "
            "another folder as data.folder"
        )
    return source


def _joined(folder: Path, ids: str, facts: str, n_fields: int) -> dict[str, list[str]]:
    """Return the facts by the keys of the sequences; none unless both files are there."""
    there = [name for name in (ids, facts) if (folder / name).is_file()]
    if len(there) == 1:
        missing = facts if there == [ids] else ids
        logger.warning(
            "folder '%s' holds %s but not %s, so neither is used", folder, there[0], missing
        )
    if len(there) < 2:
        return {}
    originals = _rows(folder / ids, None, 2)
    rows = _rows(folder / facts, "::", n_fields, encoding="latin-1")
    known = {row[0]: row[1:] for row in rows}
    return {key: known[original] for key, original in originals if original in known}


def _rows(path: Path, separator: str | None, n: int, *, encoding: str = "utf-8") -> list[list[str]]:
    """Return the fields of each line that is not blank."""
    rows = []
    for number, line in enumerate(path.read_text(encoding).split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(line.rstrip("\r").split(separator))
        if len(rows[-1]) != n:
            raise ValueError(
                f"file '{path}', line {number}: must have {n} fields, got {len(rows[-1])}: "
                f"{line.strip()[:60]!r}; take the file as it was published"
            )
    return rows


def _year(title: str) -> int | None:
    """Return the year in "Toy Story (1995)", the last of several."""
    years = re.findall(r"\((\d{4})\)", title)
    return int(years[-1]) if years else None


@functools.cache
def _log_licence(name: str) -> None:
    logger.warning(LICENCES[name])
