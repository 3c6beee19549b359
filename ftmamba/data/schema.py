"""The schema: what every table holds, written once and read by loader, processor, model and card.

In a recipe it is YAML:

    users: {key: user_id, columns: {age: numeric, zip_code: {kind: categorical, min_count: 5}}}
    items: {key: item_id, title: title, popularity_days: [7, 30], columns: {genres: categories}}
    interactions: {user: user_id, item: item_id, time: timestamp, weight: rating}

Interactions with neither a time nor an `order` are a set: nothing is read out of the file's order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from modeling_ftmamba.configuration_ftmamba import (
    HISTORY,
    Column,
    column_from_dict,
    history_of,
    near,
)

ROW_ORDER = "row"
"""As the order of the interactions: each user's rows are in order as the file has them."""

TIME_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units of a numeric time, and how many of them make a second."""


@dataclass(frozen=True)
class TableSchema:
    """What a table of users or items holds.

    Attributes:
        key: the column that names a row; every row has its own.
        columns: the columns a tower reads, popularity columns last.
        title: the column shown beside a recommendation, or empty.
    """

    key: str
    columns: tuple[Column, ...]
    title: str = ""

    @property
    def raw_columns(self) -> tuple[Column, ...]:
        """The columns that lie in the raw table."""
        return tuple(column for column in self._declared if column.kind != HISTORY)

    @property
    def history_column(self) -> Column | None:
        """The column made of a user's earlier interactions, if there is one."""
        return history_of(self.columns)

    @property
    def context(self) -> tuple[str, ...]:
        """The columns of the interactions that stand beside each event of the history."""
        return () if self.history_column is None else self.history_column.context

    @property
    def popularity_columns(self) -> tuple[Column, ...]:
        """The columns counted from the interactions, as of a row's time."""
        return tuple(column for column in self.columns if column.popularity_days)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe's form; a column that declares its kind alone is that kind."""
        values: dict[str, Any] = {"key": self.key}
        if self.title:
            values["title"] = self.title
        if self.popularity_columns:
            values["popularity_days"] = [c.popularity_days for c in self.popularity_columns]
        values["columns"] = {}
        for column in self._declared:
            declared = column.to_dict()
            del declared["name"]
            values["columns"][column.name] = declared if len(declared) > 1 else column.kind
        return values

    @property
    def _declared(self) -> tuple[Column, ...]:
        """The columns that a recipe lists by name."""
        return tuple(column for column in self.columns if not column.popularity_days)


@dataclass(frozen=True)
class InteractionSchema:
    """Which columns of the table of interactions hold what.

    Attributes:
        user: the user's key.
        item: the item's key.
        time: when it happened: epoch numbers, ISO texts or timestamps; or empty.
        weight: rating or weight, or empty.
        time_unit: of a numeric time, one of `TIME_UNITS`.
        order: a column of numbers by which a user's interactions are in order, where they have no
            time or the same one, or `ROW_ORDER`; or empty.
    """

    user: str
    item: str
    time: str = ""
    weight: str = ""
    time_unit: str = "s"
    order: str = ""

    def __post_init__(self) -> None:
        if self.time_unit not in TIME_UNITS:
            raise ValueError(
                f"schema of 'interactions': time_unit must be one of {', '.join(TIME_UNITS)}, "
                f"got {self.time_unit!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe's form."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in values.items() if value != defaults[name]}


@dataclass(frozen=True)
class Schema:
    """The schema of the three tables."""

    users: TableSchema
    items: TableSchema
    interactions: InteractionSchema

    def __post_init__(self) -> None:
        for column in self.users.popularity_columns:
            raise ValueError(
                f"schema of 'users': column {column.name!r} counts an item's popularity; "
                "popularity_days belongs to 'items'"
            )
        if self.items.history_column is not None:
            raise ValueError(
                f"schema of 'items': column {self.items.history_column.name!r} is a history, which "
                "users have; move it to 'users'"
            )
        if self.items.popularity_columns and not self.interactions.time:
            raise ValueError(
                "schema of 'items': popularity_days needs the time of each interaction; name its "
                "column as 'time' of 'interactions', or remove popularity_days"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Read the recipe's form; an unknown key is refused with the near one suggested.

        Raises:
            ValueError: a key or value that is unknown, missing or of another type.
        """
        _check_keys(values, "the schema", required=("users", "items", "interactions"))
        interactions = _mapping(values["interactions"], "schema of 'interactions'")
        optional = [field.name for field in fields(InteractionSchema)]
        _check_keys(
            interactions, "schema of 'interactions'", required=("user", "item"), optional=optional
        )
        texts = {key: _text(interactions[key], f"interactions.{key}") for key in interactions}
        return cls(
            _table_schema(values["users"], "schema of 'users'"),
            _table_schema(values["items"], "schema of 'items'"),
            InteractionSchema(**texts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe's form."""
        return {
            "users": self.users.to_dict(),
            "items": self.items.to_dict(),
            "interactions": self.interactions.to_dict(),
        }

    def to_yaml(self, notes: Iterable[str] = ()) -> str:
        """Return the recipe's form as YAML, with notes as comments above it."""
        comments = "".join(f"# {note}\n" for note in notes)
        return comments + yaml.safe_dump(
            {"schema": self.to_dict()}, sort_keys=False, allow_unicode=True
        )


def popularity_column(days: int) -> Column:
    """Return the item column that holds ln(1 + interactions of the last `days` days)."""
    return Column(f"popularity_{days}d", "numeric", popularity_days=days)


def suggestion(word: object, known: Iterable[str], lead: str = "it has") -> str:
    """Return "; did you mean 'city'? It has: age, city", or "; it has: age, city"."""
    known = list(known)
    hint = near(word, known)
    lead = f"{hint} {lead.capitalize()}" if hint else f"; {lead}"
    return f"{lead}: {', '.join(known)}"


def _table_schema(given: Any, where: str) -> TableSchema:
    values = _mapping(given, where)
    _check_keys(values, where, required=("key",), optional=("title", "popularity_days", "columns"))
    days = values.get("popularity_days") or []
    if not isinstance(days, list | tuple) or not all(type(day) is int and day > 0 for day in days):
        raise ValueError(f"{where}: popularity_days must be whole numbers > 0, got {days!r}")
    declared = _mapping(values.get("columns") or {}, f"{where}: columns")
    columns = [_column(name, kind, where) for name, kind in declared.items()]
    for column in map(popularity_column, days):
        if column.name in declared:
            raise ValueError(
                f"{where}: column {column.name!r} is already made by popularity_days; rename it"
            )
        columns.append(column)
    if not columns:
        raise ValueError(f"{where} has no columns; a tower needs one at least, the key will do")
    key = _text(values["key"], f"{where}: key")
    return TableSchema(key, tuple(columns), _text(values.get("title") or "", f"{where}: title"))


def _column(name: str, given: Any, where: str) -> Column:
    values = {"kind": given} if isinstance(given, str) else _mapping(given, f"{where}: {name}")
    try:
        column = column_from_dict({"name": name, **values})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if column.popularity_days:
        raise ValueError(
            f"{where}: column {name!r} sets popularity_days; list the days once, beside 'columns'"
        )
    return column


def _check_keys(
    values: Mapping[str, Any], where: str, *, required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    known = dict.fromkeys([*required, *optional])
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where} has an unknown key {key!r}{suggestion(key, known, 'it may have')}"
            )
    for key in required:
        if not values.get(key):
            raise ValueError(f"{where} lacks {key!r}; it needs: {', '.join(required)}")


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, got {values!r}")
    return values


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text, got {value!r}; put it in quotes")
    return value
