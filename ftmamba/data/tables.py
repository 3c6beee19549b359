"""The three tables, checked and joined: every key a dense row id, every column of its kind."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions
from ftmamba.data.readers import (
    Source,
    first_row,
    key_texts,
    numbers,
    read_table,
    seconds,
    typed_column,
)
from ftmamba.data.schema import ROW_ORDER, InteractionSchema, Schema, TableSchema, suggestion
from ftmamba.data.schema_inference import infer_schema
from modeling_ftmamba.configuration_ftmamba import EVENT_FEATURES, LARGEST_CONTEXT, near

logger = logging.getLogger(__name__)

_KEYS_SEARCHED_FOR_A_NEAR_ONE = 10_000


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
        return [text or "" for text in key_texts(self.items.column(title)).to_pylist()]

    def user_row(self, key: object) -> int:
        """Return the row of the user with this key."""
        try:
            return self.user_keys.index(str(key))
        except ValueError:
            close = near(key, self.user_keys[:_KEYS_SEARCHED_FOR_A_NEAR_ONE])
            raise ValueError(f"table 'users' has no key {str(key)!r}{close}") from None

    def user_record(self, row: int) -> dict[str, Any]:
        """Return the raw record of a user's row."""
        return self.users.slice(row, 1).to_pylist()[0]  # type: ignore[no-any-return]


def load_tables(
    users: Source,
    items: Source,
    interactions: Source,
    schema: Schema | Mapping[str, Any] | None = None,
    *,
    drop_unknown: bool = False,
    positive_threshold: float | None = None,
) -> Tables:
    """Read the three tables, check them and join the interactions to the other two.

    Args:
        users: where the table of users is; see `read_table`.
        items: where the table of items is.
        interactions: where the table of interactions is.
        schema: what they hold, as an object or in the recipe's form; inferred if None.
        drop_unknown: leave out interactions whose user or item is in no table, instead of
            refusing them.
        positive_threshold: keep the interactions whose weight is at least this; None keeps all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table is empty, lacks a column, repeats a key, holds a value of another kind
            than the schema says, or names a user or item that is in no table.
    """
    raw = [read_table(source) for source in (users, items, interactions)]
    for table, name in zip(raw, ("users", "items", "interactions"), strict=True):
        if not table.num_rows:
            raise ValueError(f"table {name!r} is empty: it has no rows")
    if schema is None:
        schema, notes = infer_schema(*raw)
        for note in notes:
            logger.info("schema: %s", note)
    elif isinstance(schema, Mapping):
        schema = Schema.from_dict(schema)
    checked_users = _checked_table(raw[0], schema.users, "users")
    checked_items = _checked_table(raw[1], schema.items, "items")
    joined = _join(
        raw[2],
        schema.interactions,
        user_keys=key_texts(checked_users.column(schema.users.key)),
        item_keys=key_texts(checked_items.column(schema.items.key)),
        drop_unknown=drop_unknown,
        context=schema.users.context,
    )
    if positive_threshold is not None:
        joined = joined.at_least(positive_threshold)
    return Tables(checked_users, checked_items, joined, schema, tuple(raw[2].column_names))


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
        raise ValueError(
            f"table {name!r}, key {schema.key!r}: {len(repeated)} keys occur more than once, the "
            f"first are {first}; keep one row each"
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
    user_ids = _row_ids(table.column(schema.user), user_keys)
    item_ids = _row_ids(table.column(schema.item), item_keys)
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
    joined = Interactions(
        user_ids,
        item_ids,
        seconds(table.column(schema.time), schema) if schema.time else None,
        _number_of_each_row(table.column(schema.weight), schema.weight, "weight").astype(np.float32)
        if schema.weight
        else None,
        len(user_keys),
        len(item_keys),
        {name: _context(table.column(name), name) for name in context},
        bool(schema.order),
    )
    if not order:
        return joined
    positions_R = _number_of_each_row(table.column(order), order, "order")
    return joined.select(np.argsort(positions_R, kind="stable"))


def _row_ids(keys: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the row of each key, -1 where it is missing or unknown."""
    rows = pc.index_in(key_texts(keys).cast(known.type), value_set=known)
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
