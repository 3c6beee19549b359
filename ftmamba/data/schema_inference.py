"""Guesses a schema from the three tables, to be shown and corrected."""

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ftmamba.data.readers import (
    MISSING_NUMBERS,
    Source,
    decoded,
    is_in_order,
    is_text,
    key_texts,
    numbers,
    parse_moments,
    read_table,
)
from ftmamba.data.schema import (
    ROW_ORDER,
    TIME_UNITS,
    InteractionSchema,
    Schema,
    TableSchema,
    popularity_column,
)
from modeling_ftmamba.configuration_ftmamba import Column

POPULARITY_DAYS = (1, 7, 30, 1000)
"""Windows proposed for the items where the interactions have times."""

SURE_SEPARATORS = ("|", ";")
SEPARATORS = (*SURE_SEPARATORS, ",", " ")
TITLE_NAMES = ("title", "name", "product_name", "prod_name", "movie_title", "track_name")
TIME_NAMES = (
    *("timestamp", "time", "date", "datetime", "created_at", "t_dat", "ts", "unixreviewtime"),
)
WEIGHT_NAMES = ("rating", "weight", "score", "count", "overall", "plays")
CODE_ENDINGS = ("_id", "_no", "_code", "zip", "zipcode")

_SCANNED_ROWS = 100_000
_FEW_NUMBERS = 20
"""Whole numbers with so few distinct values are codes."""
_OFTEN_REPEATED = 0.5
"""A text column is categorical if distinct values are at most this share of the rows."""
_LEAST_SEPARATED = 0.1
"""A separator occurs in at least this share of the rows."""
_EARLIEST_EPOCH, _LATEST_EPOCH = 10**8, 10**10
"""1973 to 2286, in seconds."""


def infer_schema(
    users: Source, items: Source, interactions: Source
) -> tuple[Schema, tuple[str, ...]]:
    """Guess keys by name and uniqueness, and kinds by type and number of distinct values.

    Returns:
        The schema, and notes on what was left out of it and why.

    Raises:
        ValueError: no column can be the key of a table, or a table is empty.
    """
    users, items, interactions = (read_table(source) for source in (users, items, interactions))
    for table, name in ((users, "users"), (items, "items"), (interactions, "interactions")):
        if not table.num_rows:
            raise ValueError(f"table {name!r} is empty: a schema cannot be inferred from no rows")
    free = list(interactions.column_names)
    user_key, user_column = find_key(users, interactions, ("users", "interactions"), free)
    free = [name for name in free if name != user_column]
    item_key, item_column = find_key(items, interactions, ("items", "interactions"), free)
    free = [name for name in free if name != item_column]
    times = [name for name in free if _is_temporal(interactions.column(name))]
    time = _named(TIME_NAMES, free) or next(iter(times), "")
    weight = _named(WEIGHT_NAMES, [name for name in free if name != time])
    unit = "s"
    floats = _as_numbers(interactions.column(time).slice(0, _SCANNED_ROWS)) if time else None
    largest = None if floats is None else pc.max(floats).as_py()
    if largest is not None:
        # The first in which a numeric time falls between 1973 and 2286.
        fits = (u for u, n in TIME_UNITS.items() if _EARLIEST_EPOCH <= largest / n < _LATEST_EPOCH)
        unit = next(fits, "s")
    notes: list[str] = []
    title = _named(TITLE_NAMES, [name for name in items.column_names if name != item_key])
    user_columns = _columns(users, "users", skip=(user_key,), notes=notes)
    item_columns = _columns(items, "items", skip=(item_key, title), notes=notes)
    if time:
        item_columns += [popularity_column(days) for days in POPULARITY_DAYS]
    user_columns = user_columns or [Column(user_key, "categorical")]
    item_columns = item_columns or [Column(item_key, "categorical")]
    order = ROW_ORDER if is_in_order(interactions) else ""
    schema = Schema(
        TableSchema(user_key, tuple(user_columns)),
        TableSchema(item_key, tuple(item_columns), title),
        InteractionSchema(user_column, item_column, time, weight, unit, order),
    )
    return schema, tuple(notes)


def find_key(
    table: pa.Table, other: pa.Table, names: tuple[str, str], free: Sequence[str]
) -> tuple[str, str]:
    """Return the key's column in a table and in another one, there one of the free ones.

    A key is unique in its table. The other has it under the same name, else under the name of a
    column most of whose values are keys of the table.

    Raises:
        ValueError: there is none; `names` are those of the two tables.
    """
    name, other_name = names
    unique = [column for column in table.column_names if _is_unique(table.column(column))]
    if not unique:
        raise ValueError(
            f"table {name!r} has no column with a value of its own in every row, so no key; "
            f"it has: {', '.join(table.column_names)}"
        )
    for column in unique:
        if column in free:
            return column, column
    share, here, there = max(
        (
            (_overlap(other.column(there), table.column(here)), here, there)
            for here in unique
            for there in free
        ),
        key=lambda candidate: candidate[0],
        default=(0.0, "", ""),
    )
    if share < _OFTEN_REPEATED:
        raise ValueError(
            f"table {other_name!r} has no column that holds keys of table {name!r} (tried "
            f"{', '.join(unique)}); it has: {', '.join(other.column_names)}; give the two "
            "the same name"
        )
    return here, there


def _is_unique(values: pa.ChunkedArray) -> bool:
    values = decoded(values)
    if pa.types.is_nested(values.type) or pa.types.is_floating(values.type) or values.null_count:
        return False
    return pc.count_distinct(values).as_py() == len(values)  # type: ignore[no-any-return]


def _overlap(values: pa.ChunkedArray, keys: pa.ChunkedArray) -> float:
    head = decoded(values.slice(0, _SCANNED_ROWS))
    if pa.types.is_nested(head.type):
        return 0.0
    found = pc.is_in(key_texts(head), value_set=key_texts(keys))
    return float(pc.mean(found.cast(pa.float64())).as_py())


def _named(usual: Iterable[str], names: Iterable[str]) -> str:
    """Return the first of the names that is a usual one, or an empty text."""
    by_name = {name.lower(): name for name in names}
    return next((by_name[name] for name in usual if name in by_name), "")


def _columns(table: pa.Table, name: str, *, skip: Iterable[str], notes: list[str]) -> list[Column]:
    columns = []
    for column in table.column_names:
        if column in skip:
            continue
        kind = _kind(column, decoded(table.column(column).slice(0, _SCANNED_ROWS)))
        if isinstance(kind, Column):
            columns.append(kind)
        else:
            notes.append(f"{name}.{column} is left out: {kind}")
    return columns


def _kind(name: str, values: pa.ChunkedArray) -> Column | str:
    """Return the column, or the reason why it is left out."""
    values = values.drop_null()
    kind = values.type
    if not len(values):
        return "it has no value"
    if pa.types.is_temporal(kind):
        return Column(name, "timestamp")
    if pa.types.is_boolean(kind):
        return Column(name, "categorical")
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return f"its type {kind} is not known"
    if pa.types.is_nested(kind):
        if not pa.types.is_floating(kind.value_type):
            return Column(name, "categories")
        lengths = pc.count_distinct(pc.list_value_length(values)).as_py()
        return Column(name, "vector") if lengths == 1 else "its lists of numbers differ in length"
    if is_text(kind):
        return _kind_of_texts(name, values)
    floats = _as_numbers(values)
    return f"its type {kind} is not known" if floats is None else _kind_of_numbers(name, floats)


def _kind_of_numbers(name: str, floats: pa.ChunkedArray) -> Column | str:
    low, high = pc.min(floats).as_py(), pc.max(floats).as_py()
    whole = pc.all(pc.equal(pc.floor(floats), floats)).as_py()
    n_distinct = pc.count_distinct(floats).as_py()
    if whole and low is not None and _EARLIEST_EPOCH <= low <= high < _LATEST_EPOCH:
        return Column(name, "timestamp" if n_distinct > _FEW_NUMBERS else "categorical")
    is_repeated = n_distinct <= _FEW_NUMBERS and n_distinct * 10 <= len(floats)
    if whole and (name.lower().endswith(CODE_ENDINGS) or is_repeated):
        if n_distinct == len(floats):
            return "every row has its own value"
        return Column(name, "categorical")
    return Column(name, "numeric")


def _kind_of_texts(name: str, values: pa.ChunkedArray) -> Column | str:
    if parse_moments(values) is not None:
        return Column(name, "timestamp")
    has_leading_zero = pc.any(pc.match_substring_regex(values, r"^0\d")).as_py()
    floats = None if has_leading_zero else _as_numbers(values)
    if floats is not None:
        return _kind_of_numbers(name, floats)
    separator = _separator(values)
    if separator:
        return Column(name, "categories", separator=separator)
    share = pc.count_distinct(values).as_py() / len(values)
    if share <= _OFTEN_REPEATED or (len(values) <= _FEW_NUMBERS and share < 1):
        return Column(name, "categorical")
    n_blanks = pc.mean(pc.count_substring(values, " ")).as_py()
    return "it is free text" if n_blanks >= 1 else "nearly every row has its own value"


def _separator(values: pa.ChunkedArray) -> str:
    """Return what splits the texts into members that many of them share, or nothing.

    A separator must occur in a tenth of the rows and leave fewer distinct members than there are
    distinct texts. Commas and blanks occur in plain texts too: there the members must be half as
    many, and each occur in ten rows on average.
    """
    n_texts = pc.count_distinct(values).as_py()
    for separator in SEPARATORS:
        holds = pc.mean(pc.match_substring(values, separator).cast(pa.float64())).as_py()
        if holds < _LEAST_SEPARATED:
            continue
        members = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(values, separator)))
        n_members = pc.count_distinct(members).as_py()
        is_sure = n_members * 2 <= n_texts and n_members * 10 <= len(values)
        if is_sure or (separator in SURE_SEPARATORS and n_members < n_texts):
            return separator
    return ""


def _as_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return numbers without the missing ones, or None where a value is no number."""
    if is_text(values.type):
        missing = pc.is_in(pc.utf8_lower(values), value_set=pa.array(MISSING_NUMBERS, values.type))
        if pc.all(missing).as_py():
            return None
    try:
        return numbers(values, "", "").drop_null()
    except ValueError:
        return None


def _is_temporal(values: pa.ChunkedArray) -> bool:
    values = decoded(values.slice(0, _SCANNED_ROWS)).drop_null()
    is_iso = is_text(values.type) and len(values) and parse_moments(values) is not None
    return bool(pa.types.is_temporal(values.type) or is_iso)
