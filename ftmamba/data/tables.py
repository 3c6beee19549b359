"""The three tables, checked and joined: every key a dense row id, every column of its kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from ftmamba.data.column_types import key_texts, typed_column
from ftmamba.data.interactions import Interactions
from ftmamba.data.joins import join_interactions, keep_positives
from ftmamba.data.readers import Source, read_table
from ftmamba.data.schema import Schema, TableSchema
from ftmamba.data.schema_inference import infer_schema
from ftmamba.data.table_checks import check_columns, check_keys, check_not_empty
from modeling_ftmamba.columns import near

_KEYS_SEARCHED_FOR_A_NEAR_ONE = 10_000


@dataclass(frozen=True)
class Tables:
    """Users, items and who took what.

    Attributes:
        users: the key and the schema's raw columns, one row a user.
        items: the key, the title and the schema's raw columns, one row an item.
        interactions: row ids into both.
        schema: what the columns are.
    """

    users: pa.Table
    items: pa.Table
    interactions: Interactions
    schema: Schema

    @cached_property
    def user_keys(self) -> list[str]:
        """The users' keys as texts, in row order."""
        return _texts(key_texts(self.users.column(self.schema.users.key)))

    @cached_property
    def item_keys(self) -> list[str]:
        """The items' keys as texts, in row order."""
        return _texts(key_texts(self.items.column(self.schema.items.key)))

    @cached_property
    def item_titles(self) -> list[str]:
        """The items' titles, in row order; empty where the schema or the row has none."""
        title = self.schema.items.title
        if not title:
            return [""] * self.items.num_rows
        return [text or "" for text in _texts(key_texts(self.items.column(title)))]

    def user_row(self, key: object) -> int:
        """Return the row of the user with this key."""
        return _row(key, self._user_rows, "users", self.user_keys)

    def item_row(self, key: object) -> int:
        """Return the row of the item with this key."""
        return _row(key, self._item_rows, "items", self.item_keys)

    def user_record(self, row: int) -> dict[str, Any]:
        """Return the raw record of a user's row."""
        return self.users.slice(row, 1).to_pylist()[0]  # type: ignore[no-any-return]

    def item_record(self, row: int) -> dict[str, Any]:
        """Return the raw record of an item's row."""
        return self.items.slice(row, 1).to_pylist()[0]  # type: ignore[no-any-return]

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.user_keys)}

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.item_keys)}


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
        check_not_empty(table, name)
    if schema is None:
        schema = infer_schema(*raw)
    elif isinstance(schema, Mapping):
        schema = Schema.from_dict(schema)
    checked_users = _checked_table(raw[0], schema.users, "users")
    checked_items = _checked_table(raw[1], schema.items, "items")
    joined = join_interactions(
        raw[2],
        schema.interactions,
        user_keys=key_texts(checked_users.column(schema.users.key)),
        item_keys=key_texts(checked_items.column(schema.items.key)),
        drop_unknown=drop_unknown,
        context=schema.users.context,
    )
    if positive_threshold is not None:
        joined = keep_positives(joined, positive_threshold)
    return Tables(checked_users, checked_items, joined, schema)


def _checked_table(table: pa.Table, schema: TableSchema, name: str) -> pa.Table:
    """Keep the key, the title and the columns of the schema, each of its kind."""
    columns = {column.name: column for column in schema.raw_columns}
    wanted = dict.fromkeys([schema.key, *([schema.title] if schema.title else []), *columns])
    check_columns(table, wanted, name)
    table = table.select(list(wanted))
    for place, column in enumerate(wanted):
        values = table.column(column)
        if column in columns:
            values = typed_column(values, columns[column], name)
        table = table.set_column(place, column, values)
    check_keys(key_texts(table.column(schema.key)), schema.key, name)
    return table


def _row(key: object, rows: Mapping[str, int], table: str, keys: list[str]) -> int:
    row = rows.get(str(key))
    if row is None:
        close = near(key, keys[:_KEYS_SEARCHED_FOR_A_NEAR_ONE])
        raise ValueError(f"table {table!r} has no key {str(key)!r}{close}")
    return row


def _texts(column: pa.ChunkedArray) -> list[str]:
    return column.to_pylist()  # type: ignore[no-any-return]
