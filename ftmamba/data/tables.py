"""The three tables, checked and joined: every key a dense row id, every column of its kind."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions
from ftmamba.data.readers import (
    Source,
    decoded,
    first_row,
    holds_times,
    is_in_order,
    is_text,
    key_texts,
    microseconds,
    numbers,
    read_table,
    typed_column,
)
from ftmamba.data.schema import ROW_ORDER, InteractionSchema, Schema, TableSchema, suggestion
from ftmamba.data.schema_inference import find_key, infer_schema
from modeling_ftmamba.configuration_ftmamba import EVENT_FEATURES, LARGEST_CONTEXT, near
from modeling_ftmamba.encoders import text_of

logger = logging.getLogger(__name__)

SideSource: TypeAlias = Source | Sequence[Source] | None
"""A table of users or items, or several; None: it is made from the interactions."""

_KEYS_SEARCHED_FOR_A_NEAR_ONE = 10_000
_NO_WIDTH = re.compile("[\u00ad\u200b\u2060\ufeff]")
_KEY_NAMES = {
    "users": r"user|uid|customer|client|member|person|visitor|session|account|buyer|reviewer"
    r"|playlist|profile|household|subscriber|listener|reader|student|patient",
    "items": r"item|iid|product|article|sku|asin|isbn|movie|film|book|song|track|artist|album|place"
    r"|business|restaurant|venue|hotel|video|game|show|recipe|course|job|news|page|content",
}
"""What the names of the interactions' two columns of keys hold."""


@dataclass(frozen=True)
class Tables:
    """Users, items and their interactions.

    Attributes:
        users: the key and the schema's raw columns, one row a user.
        items: the key, the title and the schema's raw columns, one row an item.
        interactions: row ids into both.
        schema: what the columns are.
        event_columns: names of all columns of the table of interactions.
    """

    users: pa.Table
    items: pa.Table
    interactions: Interactions
    schema: Schema
    event_columns: tuple[str, ...] = ()

    @cached_property
    def user_keys(self) -> list[str]:
        """The users' keys as texts, in row order."""
        return key_texts(self.users.column(self.schema.users.key)).to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def item_keys(self) -> list[str]:
        """The items' keys as texts, in row order."""
        return key_texts(self.items.column(self.schema.items.key)).to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def item_titles(self) -> list[str]:
        """The items' titles, in row order; empty where the schema or the row has none."""
        title = self.schema.items.title
        if not title:
            return [""] * self.items.num_rows
        texts = decoded(self.items.column(title))
        texts = texts if is_text(texts.type) else key_texts(texts)
        return [text or "" for text in texts.to_pylist()]

    def user_row(self, key: object) -> int:
        """Return the row of the user with this key."""
        return _row_of(key, self.user_keys, "users")

    def item_row(self, key: object) -> int:
        """Return the row of the item with this key."""
        return _row_of(key, self.item_keys, "items")

    def user_record(self, row: int) -> dict[str, Any]:
        """Return the raw record of a user's row."""
        return self.users.slice(row, 1).to_pylist()[0]  # type: ignore[no-any-return]


def _row_of(key: object, keys: list[str], table: str) -> int:
    try:
        return keys.index(text_of(key) or "")
    except (TypeError, ValueError, ArithmeticError):
        close = near(key, keys[:_KEYS_SEARCHED_FOR_A_NEAR_ONE])
        raise ValueError(f"table {table!r} has no key {str(key)!r}{close}") from None


def load_tables(
    users: SideSource,
    items: SideSource,
    interactions: Source,
    schema: Schema | Mapping[str, Any] | None = None,
    *,
    drop_unknown: bool = False,
    positive_threshold: float | None = None,
) -> Tables:
    """Read the three tables, check them and join the interactions to the other two.

    Args:
        users: where the table of users is; see `read_table`. None, an empty text or a table
            without rows: the users are those of the interactions. Several: the first names each
            user in a row of its own, the others are joined to it by its key; one that has several
            rows for a key adds sets.
        items: where the table of items is, likewise.
        interactions: where the table of interactions is.
        schema: what they hold, as an object or in the recipe's form; inferred if None.
        drop_unknown: leave out interactions whose user or item is in no table, instead of
            refusing them.
        positive_threshold: keep the interactions whose weight is at least this; None keeps all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table is empty, lacks a column, repeats a key, holds a value of another kind
            than the schema says, or names a user or item that is in no table.

    Rows that are equal in every column count once, and so it is logged; not where the order of the
    file is that of the interactions. Keys that differ from a table's by leading zeros alone are
    matched where only one can be meant, which is logged too.
    """
    if isinstance(schema, Mapping):
        schema = Schema.from_dict(schema)
    events = read_table(interactions)
    if not events.num_rows:
        raise ValueError("table 'interactions' is empty: it has no rows")
    _check_columns(events, (), "interactions")
    if not (is_in_order(events) or (schema and schema.interactions.order == ROW_ORDER)):
        events = _each_row_once(events, "interactions")
    keys = {} if schema is None else {"users": schema.users.key, "items": schema.items.key}
    raw = {
        name: _read_side(source, name, keys.get(name, ""))
        for name, source in (("users", users), ("items", items))
    }
    columns = _key_columns(raw, events) if schema is None else {
        "users": schema.interactions.user, "items": schema.interactions.item
    }  # fmt: skip
    side = {
        name: _made_table(events, columns[name], keys.get(name, ""), name)
        if table is None
        else table
        for name, table in raw.items()
    }
    if schema is None:
        schema, notes = infer_schema(side["users"], side["items"], events)
        for note in notes:
            logger.info("schema: %s", note)
    checked_users = _checked_table(side["users"], schema.users, "users")
    checked_items = _checked_table(side["items"], schema.items, "items")
    joined = _join(
        events,
        schema.interactions,
        user_keys=key_texts(checked_users.column(schema.users.key)),
        item_keys=key_texts(checked_items.column(schema.items.key)),
        drop_unknown=drop_unknown,
        context=schema.users.context,
    )
    if positive_threshold is not None:
        joined = joined.at_least(positive_threshold)
    return Tables(checked_users, checked_items, joined, schema, tuple(events.column_names))


def _read_side(source: SideSource, name: str, key: str) -> pa.Table | None:
    """Read the table of users or items and join what belongs to it; None if there is no row."""
    if isinstance(source, str) and "," in source and not Path(source).expanduser().exists():
        source = [part.strip() for part in source.split(",")]
    several = isinstance(source, Sequence) and not isinstance(source, str)
    # A list of mappings is one table, of a row each.
    if several and all(isinstance(one, Mapping) for one in source):  # type: ignore[union-attr]
        several = False
    if source is None or (isinstance(source, str | Sequence) and not source):
        return None
    table, *further = map(read_table, source if several else [source])  # type: ignore[arg-type]
    if not table.num_rows:
        return None
    _check_columns(table, (), name)
    table = _each_row_once(table, name)
    for number, other in enumerate(further, start=2):
        names = (name, f"{name} {number}")
        table = _with_further(table, _each_row_once(other, names[1]), names, key)
    return table


def _each_row_once(table: pa.Table, name: str) -> pa.Table:
    """Leave out rows that equal an earlier one in every column."""
    if any(pa.types.is_nested(kind) for kind in table.schema.types):
        return table
    rows = np.arange(table.num_rows)
    codes = np.zeros_like(rows)
    for column in table.columns:
        if len(rows) < table.num_rows:
            column = column.take(pa.array(rows))  # noqa: PLW2901
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        # Rows that were equal so far have one code; those that equal no other one are done.
        codes = pd.factorize(codes * len(encoded.dictionary) + encoded.indices.to_numpy())[0]
        is_shared = pd.Series(codes).duplicated(keep=False).to_numpy()
        rows, codes = rows[is_shared], codes[is_shared]
        if not len(rows):
            return table
    repeats = rows[pd.Series(codes).duplicated().to_numpy()]
    is_first_R = np.ones(table.num_rows, np.bool_)
    is_first_R[repeats] = False
    logger.warning(
        "table %r: %d of %d rows equal another one in every column, the first is row %d; each "
        "counts once", name, len(repeats), table.num_rows, int(repeats[0]) + 1,
    )  # fmt: skip
    return table.filter(pa.array(is_first_R))


def _with_further(table: pa.Table, other: pa.Table, names: tuple[str, str], key: str) -> pa.Table:
    """Join another table by the key; the values of a key that it repeats become lists."""
    known = table.select([key]) if key in table.column_names else table
    here, there = find_key(known, other, names, other.column_names)
    for column in other.column_names:
        if column != there and column in table.column_names:
            logger.info(
                "column %r of table %r is left out: the first table has it", column, names[1]
            )
            other = other.drop_columns(column)
    keys = key_texts(other.column(there))
    rows = pc.index_in(keys, value_set=key_texts(table.column(here)).cast(keys.type))
    other = other.drop_columns(there).append_column("", rows).filter(rows.is_valid())
    columns = [column for column in other.column_names if column]
    if other.num_rows == pc.count_distinct(other.column("")).as_py():
        order = pc.index_in(
            pa.array(np.arange(table.num_rows), rows.type), value_set=other.column("")
        )
        other = other.take(order)
    else:
        # Sorted by row, so that the members of a row lie side by side.
        other = other.take(pc.sort_indices(other.column("")))
        columns = [column for column in columns if not holds_times(other.column(column))]
        counts = np.bincount(other.column("").to_numpy(), minlength=table.num_rows)
        starts = np.concatenate([[0], np.cumsum(counts)])
        offsets = pa.array(starts, pa.int32(), mask=np.append(counts == 0, False))
        other = pa.table(
            {
                column: pa.ListArray.from_arrays(offsets, other.column(column).combine_chunks())
                for column in columns
            }
        )
    for column in columns:
        table = table.append_column(column, other.column(column))
    return table


def _key_columns(raw: Mapping[str, pa.Table | None], events: pa.Table) -> dict[str, str]:
    """Return the columns of the interactions that hold the keys of users and of items."""
    free, columns = list(events.column_names), {}
    for name, table in raw.items():
        if table is not None:
            columns[name] = find_key(table, events, (name, "interactions"), free)[1]
            free.remove(columns[name])
    for name, table in raw.items():
        if table is None:
            named = [one for one in free if re.search(_KEY_NAMES[name], one.lower())]
            is_key = [one for one in named if re.search(r"(id|key|no|nr|code|sku)$", one.lower())]
            columns[name] = next(iter([*is_key, *named, *free]), "")
            if not columns[name]:
                raise ValueError(
                    f"table 'interactions' has no column of keys of {name}; it has: "
                    f"{', '.join(events.column_names)}"
                )
            free.remove(columns[name])
            logger.info("%s: made from column %r of the interactions", name, columns[name])
    return columns


def _made_table(events: pa.Table, column: str, key: str, name: str) -> pa.Table:
    """Return the table of the keys that the interactions have, in the order of the file."""
    _check_columns(events, [column], "interactions")
    keys = pc.unique(key_texts(events.column(column))).drop_null()
    if not len(keys):
        raise ValueError(
            f"table 'interactions', column {column!r} holds no key, so no {name} can be made of it"
        )
    return pa.table({key or column: keys})


def _checked_table(table: pa.Table, schema: TableSchema, name: str) -> pa.Table:
    """Keep the key, the title and the columns of the schema, each of its kind."""
    columns = {column.name: column for column in schema.raw_columns}
    wanted = dict.fromkeys([schema.key, *([schema.title] if schema.title else []), *columns])
    _check_columns(table, wanted, name)
    table = table.select(list(wanted))
    for index, column in enumerate(wanted):
        if column in columns:
            values = typed_column(table.column(column), columns[column], name)
            table = table.set_column(index, column, values)
    keys = key_texts(table.column(schema.key))
    if keys.null_count:
        raise ValueError(
            f"table {name!r}, key {schema.key!r}: {keys.null_count} rows have no key, the first is "
            f"row {first_row(keys.is_null())}; every row needs its own"
        )
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = ", ".join(repr(key) for key in repeated.field("values")[:3].to_pylist())
        if pc.count_distinct(table.column(schema.key)).as_py() == table.num_rows:
            first += " (texts of one number, such as 1.10 and 1.1, are one key; write v1.10)"
        raise ValueError(
            f"table {name!r}, key {schema.key!r}: {len(repeated)} keys occur more than once, the "
            f"first are {first}; keep one row each, or give the table as a further one beside a "
            f"table of {name} with one row each: its columns become sets"
        )
    return table


def _check_columns(table: pa.Table, wanted: Iterable[str], name: str) -> None:
    """Refuse a table that lacks a wanted column, or has two of one name."""
    for column in table.column_names:
        if table.column_names.count(column) > 1:
            raise ValueError(f"table {name!r} has two columns {column!r}; rename one of them")
    for column in wanted:
        if column not in table.column_names:
            raise ValueError(
                f"table {name!r} has no column {column!r}{suggestion(column, table.column_names)}"
            )


def _join(
    table: pa.Table,
    schema: InteractionSchema,
    *,
    user_keys: pa.ChunkedArray,
    item_keys: pa.ChunkedArray,
    drop_unknown: bool,
    context: Sequence[str],
) -> Interactions:
    """Return the interactions as row ids of the two tables of keys, which are texts."""
    order = "" if schema.order == ROW_ORDER else schema.order
    wanted = [c for c in (schema.user, schema.item, schema.time, schema.weight, order) if c]
    _check_columns(table, wanted, "interactions")
    for name in context:
        if name not in table.column_names:
            known = [*EVENT_FEATURES, *table.column_names]
            raise ValueError(
                f"event_features of the users' history name {name!r}, which is no column of table "
                f"'interactions'{suggestion(name, known, 'there are')}"
            )
    user_ids = _row_ids(table.column(schema.user), user_keys, (schema.user, "users"))
    item_ids = _row_ids(table.column(schema.item), item_keys, (schema.item, "items"))
    known_R = (user_ids >= 0) & (item_ids >= 0)
    n_unknown = len(known_R) - int(known_R.sum())
    if n_unknown and not drop_unknown:
        unknown = [
            _unknown(table.column(schema.user), schema.user, user_ids, "users"),
            _unknown(table.column(schema.item), schema.item, item_ids, "items"),
        ]
        raise ValueError(
            f"table 'interactions' has {' and '.join(filter(None, unknown))}; add them to the "
            "tables, or set drop_unknown to leave these rows out"
        )
    if n_unknown:
        logger.warning(
            "dropped %d of %d interactions whose user or item is in no table",
            n_unknown, len(known_R),
        )  # fmt: skip
        table = table.filter(pa.array(known_R))
        user_ids, item_ids = user_ids[known_R], item_ids[known_R]
        if not table.num_rows:
            raise ValueError(
                "table 'interactions' is empty: no row is left: every user or item is unknown"
            )
    times_R = microseconds(table.column(schema.time), schema) if schema.time else None
    joined = Interactions(
        user_ids,
        item_ids,
        None if times_R is None else times_R // 1_000_000,
        _number_of_each_row(table.column(schema.weight), schema.weight, "weight").astype(np.float32)
        if schema.weight
        else None,
        len(user_keys),
        len(item_keys),
        {name: _context(table.column(name), name) for name in context},
        bool(schema.order),
    )
    # Times are whole seconds from here on, so rows of one second must be in order already.
    by: list[NDArray[Any]] = [] if times_R is None or not (times_R % 1_000_000).any() else [times_R]
    if order:
        by.insert(0, _number_of_each_row(table.column(order), order, "order"))
    return joined.select(np.lexsort(by)) if by else joined


def _check_lookalikes(keys: pa.ChunkedArray, name: str) -> None:
    """Refuse keys that look the same but are written with other code points, hence are two."""
    foreign = keys.filter(pc.invert(pc.string_is_ascii(keys))).to_pylist()
    forms = [normalize("NFC", _NO_WIDTH.sub("", key)) for key in foreign]
    is_there = pc.is_in(pa.array(forms, keys.type), value_set=keys).to_pylist()
    first: dict[str, str] = {}
    for key, form, found in zip(foreign, forms, is_there, strict=True):
        other = form if found else first.setdefault(form, key)
        if other != key:
            raise ValueError(
                f"{name}: the keys {key!a} and {other!a} look the same and are two; write them "
                "alike in every table: in Unicode's form NFC, without characters of no width"
            )


def _row_ids(
    keys: pa.ChunkedArray, known: pa.ChunkedArray, names: tuple[str, str]
) -> NDArray[np.int64]:
    """Return the row of each key, -1 where it is missing or unknown."""
    texts = key_texts(keys).cast(known.type)
    rows = pc.index_in(texts, value_set=known)
    others = pc.unique(texts.filter(rows.is_null()).drop_null())
    _check_lookalikes(pa.chunked_array([*known.chunks, others]), names[1])
    if len(others):
        bare = pc.replace_substring_regex(known, r"^0+(\d)", r"\1")
        rows_of_others = pc.index_in(
            pc.replace_substring_regex(others, r"^0+(\d)", r"\1"), value_set=bare
        )
        matched = rows_of_others.drop_null()
        is_clear = pc.count_distinct(bare).as_py() == len(known)
        is_clear = is_clear and pc.count_distinct(matched).as_py() == len(matched)
        is_clear = is_clear and not pc.any(pc.is_in(matched, value_set=pc.unique(rows))).as_py()
        if len(matched) and is_clear:
            logger.warning(
                "table 'interactions', column %r: %d keys such as %r are those of table %r but for "
                "leading zeros, and are taken as such", names[0], len(matched),
                others.filter(rows_of_others.is_valid())[0].as_py(), names[1],
            )  # fmt: skip
            rows = pc.coalesce(rows, rows_of_others.take(pc.index_in(texts, value_set=others)))
    return pc.fill_null(rows, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _unknown(keys: pa.ChunkedArray, column: str, ids: NDArray[np.int64], table: str) -> str:
    """Say which keys are in no table, or nothing."""
    rows = np.flatnonzero(ids < 0)
    first = keys.take(pa.array(rows[:3])).to_pylist()
    shown = [f"{key!r} (row {row + 1})" for key, row in zip(first, rows, strict=False)]
    named = f"{len(rows)} rows whose {column!r} is not in table {table!r}: {', '.join(shown)}"
    return named if shown else ""


def _number_of_each_row(column: pa.ChunkedArray, name: str, role: str) -> NDArray[np.float64]:
    values = numbers(column, name, "interactions")
    if values.null_count:
        raise ValueError(
            f"table 'interactions', column {name!r}: {values.null_count} rows have no {role}, the "
            f"first is row {first_row(values.is_null())}; fill them in, or leave {role!r} out of "
            "the schema"
        )
    return values.to_numpy()  # type: ignore[no-any-return]


def _context(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    remedy = "remove it from event_features of the users' history"
    values = numbers(column, name, "interactions", otherwise=remedy).to_numpy()
    large = np.abs(values) > LARGEST_CONTEXT
    if large.any():
        row = int(np.argmax(large))
        raise ValueError(
            f"table 'interactions', column {name!r}: row {row + 1} is {values[row]:g}; beside an "
            f"event a number must be within {LARGEST_CONTEXT:g} of 0, leave it empty if it is not "
            f"known, or {remedy}"
        )
    return values.astype(np.float32)  # type: ignore[no-any-return]
