"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings with their times (GroupLens, 1998)."""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ftmamba.data.cache import cache_folder, place_folder
from ftmamba.data.movielens_files import OFFICIAL_FILES, RECBOLE_FILES, check_digest, download
from ftmamba.data.sasrec_file import amazon_beauty, ml_1m
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables

logger = logging.getLogger(__name__)

LICENCE = (
    "MovieLens-100K is GroupLens' data, for research: cite Harper & Konstan (2015), do not "
    "redistribute it, and ask before any commercial use (https://grouplens.org/datasets/movielens)"
)
GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
SCHEMA = {
    "users": {
        "key": "user_id",
        "columns": {
            "age": "numeric",
            "gender": "categorical",
            "occupation": "categorical",
            "zip_code": "categorical",
        },
    },
    "items": {
        "key": "item_id",
        "title": "title",
        "columns": {
            "release_year": "numeric",
            "genres": {"kind": "categories", "separator": " "},
        },
    },
    "interactions": {
        "user": "user_id",
        "item": "item_id",
        "time": "timestamp",
        "weight": "rating",
    },
}
RawTables = tuple[pa.Table, pa.Table, pa.Table]


def movielens_100k(
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,
    *,
    schema: Schema | Mapping[str, object] | None = None,
    positive_threshold: float | None = None,
) -> Tables:
    """Return MovieLens-100K, the same tables wherever the files come from.

    The files are taken from `folder`; else from the cache; else from the official archive; else
    from the copy inside the PyPI package recbole. Every file is checked by its SHA-256.

    Args:
        folder: holds u.data, u.item, u.user, or ml-100k.inter, .item, .user.
        cache_dir: where downloads are kept; `cache_folder()` if None.
        schema: which columns to use and how, instead of `SCHEMA`.
        positive_threshold: keep ratings of at least this; None keeps all.

    Raises:
        FileNotFoundError: the files are neither there nor could be downloaded.
        ValueError: a file is damaged.
    """
    _tell_licence()
    if folder is not None:
        raw = read_folder(Path(folder).expanduser())
    else:
        root = Path(cache_dir).expanduser() if cache_dir is not None else cache_folder()
        cached = root / "movielens-100k"
        if not cached.is_dir():
            place_folder(cached, download)
        raw = read_folder(cached)
    users, items, ratings = raw
    return load_tables(
        users, items, ratings, schema or SCHEMA, positive_threshold=positive_threshold
    )


def read_folder(folder: Path) -> RawTables:
    """Read users, items and ratings from a folder of either layout, checked by SHA-256."""
    for files, read in ((OFFICIAL_FILES, read_official), (RECBOLE_FILES, read_recbole)):
        if all((folder / name).is_file() for name in files):
            for name, digest in files.items():
                check_digest((folder / name).read_bytes(), digest, str(folder / name))
            return read(folder)
    raise FileNotFoundError(
        f"folder '{folder}' holds MovieLens-100K in neither layout; it needs "
        f"{', '.join(OFFICIAL_FILES)}, or {', '.join(RECBOLE_FILES)}"
    )


def read_official(folder: Path) -> RawTables:
    """Read GroupLens' own layout: no header, "|" between fields, Latin-1."""
    items = _fields(folder / "u.item", "|", ["item_id", "title", "date", "video", "url", *GENRES])
    members = [
        pc.if_else(pc.equal(items.column(genre), "1"), genre, pa.scalar(None, pa.string()))
        for genre in GENRES
    ]
    genres = pc.binary_join_element_wise(*members, " ", null_handling="skip")
    users = _fields(folder / "u.user", "|", ["user_id", "age", "gender", "occupation", "zip_code"])
    ratings = _fields(folder / "u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
    return users, _items(items.column("item_id"), items.column("title"), genres), ratings


def read_recbole(folder: Path) -> RawTables:
    """Read RecBole's layout: a header of `name:type`, tabs, UTF-8, the year cut off the title."""
    items = _fields(folder / "ml-100k.item", "\t", ["item_id", "title", "year", "genres"], header=1)
    # RecBole cut the last bracket off every title; put back, it is GroupLens' title again.
    titles = pc.if_else(
        pc.equal(items.column("title"), "unkonwn"),
        "unknown",
        pc.binary_join_element_wise(
            items.column("title"),
            pc.binary_join_element_wise("(", items.column("year"), ")", ""),
            " ",
        ),
    )
    users = _fields(
        folder / "ml-100k.user",
        "\t",
        ["user_id", "age", "gender", "occupation", "zip_code"],
        header=1,
    )
    ratings = _fields(
        folder / "ml-100k.inter", "\t", ["user_id", "item_id", "rating", "timestamp"], header=1
    )
    return users, _items(items.column("item_id"), titles, items.column("genres")), ratings


def _items(keys: pa.ChunkedArray, titles: pa.ChunkedArray, genres: pa.ChunkedArray) -> pa.Table:
    years = pc.struct_field(pc.extract_regex(titles, r"\((?P<year>\d{4})\)"), "year")
    names = ["item_id", "title", "release_year", "genres"]
    return pa.table([keys, titles, years.cast(pa.int64()), genres], names=names)


def _fields(path: Path, delimiter: str, names: list[str], *, header: int = 0) -> pa.Table:
    return pa.csv.read_csv(
        str(path),
        read_options=pa.csv.ReadOptions(
            column_names=names, skip_rows=header, encoding="utf-8" if header else "latin-1"
        ),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, quote_char=False),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


@functools.cache
def _tell_licence() -> None:
    logger.warning(LICENCE)


NAMED_DATASETS: dict[str, Callable[..., Tables]] = {
    "movielens-100k": movielens_100k,
    "ml-1m": ml_1m,
    "amazon-beauty": amazon_beauty,
}
"""The data sets that are known by name."""
