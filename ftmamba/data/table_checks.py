"""What every table must satisfy before it is used."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from ftmamba.data.suggestion import suggestion


def check_not_empty(table: pa.Table, name: str, reason: str = "it has no rows") -> None:
    """Refuse a table without rows."""
    if not table.num_rows:
        raise ValueError(f"table {name!r} is empty: {reason}")


def check_columns(table: pa.Table, wanted: Iterable[str], name: str) -> None:
    """Refuse a table that lacks a wanted column, or has two of one name."""
    for column in table.column_names:
        if table.column_names.count(column) > 1:
            raise ValueError(f"table {name!r} has two columns {column!r}; rename one of them")
    for column in wanted:
        if column not in table.column_names:
            raise ValueError(
                f"table {name!r} has no column {column!r}{suggestion(column, table.column_names)}"
            )


def check_keys(keys: pa.ChunkedArray, column: str, table: str) -> None:
    """Refuse keys that are missing or occur twice."""
    if keys.null_count:
        raise ValueError(
            f"table {table!r}, key {column!r}: {keys.null_count} rows have no key, the first is "
            f"row {first_missing(keys)}; every row needs its own"
        )
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = ", ".join(repr(key) for key in repeated.field("values")[:3].to_pylist())
        raise ValueError(
            f"table {table!r}, key {column!r}: {len(repeated)} keys occur more than once, the "
            f"first are {first}; keep one row each"
        )


def first_missing(values: pa.ChunkedArray) -> int:
    """Return the number, from 1, of the first row without a value."""
    return int(pc.index(values.is_null(), value=True).as_py()) + 1
