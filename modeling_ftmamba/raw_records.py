"""The forms in which people hand over records, brought to one: columns of values.

One record, a list of records, columns of arrays, or a table of Arrow, pandas, polars or datasets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import numpy as np

from .arrow_values import arrow_table, is_arrow_column
from .configuration_ftmamba import HISTORY, Column, near

_FORMS = "a record (dict), a list of records, a dict of columns, or a table (pyarrow, datasets)"


@dataclass(frozen=True)
class RawColumns:
    """Values of the known columns that are there.

    Attributes:
        values: a list, numpy array or Arrow array by column name.
        n_rows: their common length; -1 if they differ.
        keys: the names of all columns that were given.
    """

    values: dict[str, Any]
    n_rows: int
    keys: tuple[str, ...] = ()


def raw_records(source: Any, columns: tuple[Column, ...], tower: str) -> RawColumns:
    """Take records apart into columns; unknown keys are left out, absent columns are missing.

    A dict is one record if a value of a column that holds no lists is a single value, and columns
    of arrays otherwise. A dict of nothing but sets or vectors is a record unless these are nested.

    Raises:
        ValueError: the source has none of these forms, no key is a known column, or the columns
            differ in length.
    """
    if isinstance(source, Mapping) and _is_record(source, columns):
        source = [source]
    if isinstance(source, list | tuple):
        return _columns_of_list(source, columns, tower)
    raw = raw_table(source, columns, tower)
    if raw.n_rows < 0:
        lengths = ", ".join(f"{name!r} has {len(values)}" for name, values in raw.values.items())
        raise ValueError(
            f"the {tower} columns must have one length, got: {lengths}; to give one record, hand "
            "it over in a list"
        )
    return raw


def raw_table(source: Any, columns: tuple[Column, ...], tower: str) -> RawColumns:
    """Take a table, or columns that may differ in length, apart.

    Raises:
        ValueError: the source is no table, or no column is known.
    """
    table = arrow_table(_narrow(source, columns)) if not isinstance(source, Mapping) else None
    if table is not None:
        keys = _check_known(table.column_names, columns, tower)
        names = _names_to_read(columns, keys)
        return RawColumns({name: table.column(name) for name in names}, table.num_rows, keys)
    if isinstance(source, Mapping):
        keys = _check_known(source, columns, tower)
        values = {name: source[name] for name in _names_to_read(columns, source)}
        for name, column_values in values.items():
            if not _is_column(column_values):
                raise ValueError(
                    f"{tower} column {name!r} must be a list or an array, got {column_values!r}; "
                    "to give one record, hand it over in a list"
                )
        lengths = {len(column_values) for column_values in values.values()}
        return RawColumns(values, lengths.pop() if len(lengths) == 1 else -1, keys)
    if isinstance(source, list | tuple):
        return _columns_of_list(source, columns, tower)
    raise ValueError(f"{tower}s must be {_FORMS}; got {type(source).__name__}")


def _narrow(source: Any, columns: tuple[Column, ...]) -> Any:
    """Leave out a data set's columns that nobody asked for, before they are read."""
    if not (hasattr(source, "select_columns") and hasattr(source, "column_names")):
        return source
    known = _names_to_read(columns, source.column_names)
    return source.select_columns(known) if known else source


def _columns_of_list(records: Sequence[Any], columns: tuple[Column, ...], tower: str) -> RawColumns:
    if not all(issubclass(kind, Mapping) for kind in set(map(type, records))):
        row = next(row for row, record in enumerate(records) if not isinstance(record, Mapping))
        raise ValueError(
            f"{tower}s, row {row} (the first is 0): a record must be a dict of column name to "
            f"value, got {records[row]!r}"
        )
    keys = _check_known(set().union(*records), columns, tower)
    values = {
        name: list(map(methodcaller("get", name), records))
        for name in _names_to_read(columns, keys)
    }
    return RawColumns(values, len(records), keys)


def _names_to_read(columns: tuple[Column, ...], given: Iterable[str]) -> list[str]:
    """Return the columns that are given; the events of a history are read elsewhere."""
    known = [column.name for column in columns if column.kind != HISTORY]
    there = set(given)
    return [name for name in known if name in there]


def _check_known(
    keys: Iterable[object], columns: tuple[Column, ...], tower: str
) -> tuple[str, ...]:
    names = [column.name for column in columns]
    given = tuple(sorted(map(str, keys)))
    reads_columns = any(column.kind != HISTORY for column in columns)
    if reads_columns and given and not set(names) & set(given):
        guess = next(filter(None, (near(key, names) for key in given)), "")
        raise ValueError(
            f"the {tower} records have no known column, got: {', '.join(given[:10])}{guess}; "
            f"known are: {', '.join(names)}"
        )
    return given


def _is_column(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        or is_arrow_column(value)
        or (isinstance(value, np.ndarray) and value.ndim > 0)
    )


def _is_record(source: Mapping[str, Any], columns: tuple[Column, ...]) -> bool:
    columns = tuple(column for column in columns if column.kind != HISTORY)
    given = [(column, source[column.name]) for column in columns if column.name in source]
    single = [value for column, value in given if column.kind not in ("categories", "vector")]
    if single or not given:
        return not given or not all(map(_is_column, single))
    return not all(map(_is_column_of_lists, (value for _, value in given)))


def _is_column_of_lists(value: Any) -> bool:
    if is_arrow_column(value):
        return True
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.ndim == 2
    return _is_column(value) and any(
        isinstance(member, set | frozenset) or _is_column(member) for member in value
    )
