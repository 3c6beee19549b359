"""Turns a raw Arrow column into its declared kind, or says which row does not fit."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.schema import TIME_UNITS, InteractionSchema
from modeling_ftmamba.columns import Column

MISSING_NUMBERS = ("", "nan", "na", "n/a", "null", "none", "-")
"""Texts that mean a missing number, in lower case; in a text column they are values."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LARGEST_EXACT_INTEGER = 2**53
_LATEST_SECONDS = 10**11
"""About the year 5138: a larger time is in another unit."""


def typed_column(values: pa.ChunkedArray, column: Column, table: str) -> pa.ChunkedArray:
    """Return a raw column as its declared kind.

    Raises:
        ValueError: a value of another kind, with its row (rows count from 1, header apart).
    """
    values = decoded(values)
    if column.kind == "numeric":
        return _whole(numbers(values, column.name, table))
    if column.kind == "timestamp":
        return _moments(values, column.name, table)
    if column.kind == "vector":
        return _vectors(values, column, table)
    is_list = _is_list(values.type)
    if column.kind == "categorical" and (is_list or pa.types.is_struct(values.type)):
        raise ValueError(
            f"{_place(column.name, table)}: kind 'categorical' needs one value a row, the column "
            f"holds {values.type}; declare it as 'categories'"
        )
    if column.kind == "categories" and not is_list and not column.separator and _has_any(values):
        raise ValueError(
            f"{_place(column.name, table)}: kind 'categories' needs lists, the column holds "
            f"{values.type}; give the separator of its members, or declare it as 'categorical'"
        )
    return values


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a dictionary-encoded column as its plain values."""
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values


def key_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return keys as texts: 5 and 5.0 are both "5"."""
    values = decoded(values)
    if pa.types.is_floating(values.type):
        values = _whole(values.cast(pa.float64()))
    return values if is_text(values.type) else values.cast(pa.string())


def is_text(kind: pa.DataType) -> bool:
    """Say whether an Arrow type is a text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)  # type: ignore[no-any-return]


def numbers(
    values: pa.ChunkedArray,
    name: str,
    table: str,
    *,
    otherwise: str = "declare the column as 'categorical'",
) -> pa.ChunkedArray:
    """Return a column as float64 with nulls where a number is missing.

    Args:
        values: texts that are written like numbers, numbers, or true and false.
        name: of the column, for errors.
        table: of the column, for errors.
        otherwise: what to do about values that are none, for errors.

    Raises:
        ValueError: a value is no number, or is infinite.
    """
    values = decoded(values)
    if is_text(values.type):
        floats = _parsed_numbers(values, _place(name, table), otherwise)
    elif pa.types.is_boolean(values.type):
        floats = values.cast(pa.int8()).cast(pa.float64())
    elif _is_number(values.type) or pa.types.is_null(values.type):
        floats = values.cast(pa.float64(), safe=False)
    else:
        raise ValueError(
            f"{_place(name, table)}: needs numbers, the column holds {values.type}; convert it, "
            f"or {otherwise}"
        )
    infinite = pc.fill_null(pc.is_inf(floats), fill_value=False)
    if pc.any(infinite).as_py():
        row = _first_row(infinite)
        raise ValueError(
            f"{_place(name, table)}: row {row} is {floats[row - 1].as_py()}; a number must be "
            "finite, leave it empty if it is not known"
        )
    return pc.if_else(pc.is_nan(floats), pa.scalar(None, pa.float64()), floats)


def seconds(values: pa.ChunkedArray, schema: InteractionSchema) -> NDArray[np.int64]:
    """Return the time of each interaction in whole UTC seconds since 1970.

    Raises:
        ValueError: a time is missing, no time, or in another unit than the schema says.
    """
    moments = _moments(decoded(values), schema.time, "interactions")
    if moments.null_count:
        raise ValueError(
            f"{_place(schema.time, 'interactions')}: {moments.null_count} rows have no time, the "
            f"first is row {_first_row(moments.is_null())}; fill them in, or leave 'time' out of "
            "the schema"
        )
    if pa.types.is_temporal(moments.type):
        return _epoch_microseconds(moments) // 1_000_000
    units = moments.to_numpy()
    per_second = TIME_UNITS[schema.time_unit]
    whole = np.floor(units / per_second).astype(np.int64)
    if len(whole) and np.abs(whole).max() > _LATEST_SECONDS:
        row = int(np.abs(whole).argmax())
        raise ValueError(
            f"{_place(schema.time, 'interactions')}: row {row + 1} is {units[row]:.0f}, which is "
            f"no time in unit {schema.time_unit!r}; set time_unit of 'interactions' to one of "
            f"{', '.join(TIME_UNITS)}"
        )
    return whole  # type: ignore[no-any-return]


def parse_moments(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return ISO texts as UTC timestamps, or None if one of them is no such text."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return texts.cast(kind).cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid:
            continue
    return None


def _epoch_microseconds(moments: pa.ChunkedArray) -> NDArray[np.int64]:
    if pa.types.is_date(moments.type):
        moments = moments.cast(pa.timestamp("s"))
    plain = moments.cast(pa.timestamp("us", moments.type.tz), safe=False)
    return plain.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]


def _parsed_numbers(values: pa.ChunkedArray, place: str, otherwise: str) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(values)
    missing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(MISSING_NUMBERS, texts.type))
    texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(texts, _NUMBER), fill_value=True))
    if pc.any(wrong).as_py():
        row = _first_row(wrong)
        raise ValueError(
            f"{place}: row {row} is {values[row - 1].as_py()!r}, which is not a number "
            f"({pc.sum(wrong).as_py()} such rows); correct it, or {otherwise}"
        )
    return pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())


def _moments(values: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Return timestamps, dates, or float64 epoch numbers."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return values
    if not is_text(values.type):
        return numbers(values, name, table)
    texts = pc.utf8_trim_whitespace(values)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    moments = parse_moments(texts)
    if moments is not None:
        return moments
    looks_iso = pc.match_substring_regex(texts, r"^\d{4}-\d{2}-\d{2}")
    if not pc.any(looks_iso).as_py():
        return numbers(values, name, table)
    wrong = pc.invert(pc.fill_null(looks_iso, fill_value=True))
    row = _first_row(wrong) if pc.any(wrong).as_py() else _first_unparsed(texts)
    raise ValueError(
        f"{_place(name, table)}: row {row} is {values[row - 1].as_py()!r}, which is no time; write "
        "2024-01-31, 2024-01-31 18:05:00 or seconds since 1970, one form for the whole column"
    )


def _first_unparsed(texts: pa.ChunkedArray) -> int:
    """Return the first row that cannot be read as the others are, by halving."""
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parse_moments(texts[:middle]) is None else (middle, high)
    return low + 1


def _vectors(values: pa.ChunkedArray, column: Column, table: str) -> pa.ChunkedArray:
    place = _place(column.name, table)
    if is_text(values.type):
        bare = pc.utf8_trim(values, characters="[]() \t")
        pattern = column.separator or r"[\s,;]+"
        split = pc.split_pattern if column.separator else pc.split_pattern_regex
        try:
            values = split(bare, pattern).cast(pa.list_(pa.float32()))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{place}: a text is no list of numbers: {error}") from error
    if not _is_list(values.type) or not _is_number(values.type.value_type):
        raise ValueError(f"{place}: kind 'vector' needs lists of numbers, it holds {values.type}")
    lengths = pc.list_value_length(values)
    sizes = pc.unique(lengths.drop_null()).to_pylist()
    if len(sizes) > 1:
        row = _first_row(pc.fill_null(pc.not_equal(lengths, sizes[0]), fill_value=False))
        raise ValueError(
            f"{place}: row {row} has {lengths[row - 1].as_py()} numbers, the first row with a "
            f"vector has {sizes[0]}; all need the same length"
        )
    return values


def _whole(floats: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return float64 as int64 where no value has a fraction."""
    rounded = pc.equal(pc.floor(floats), floats)
    small = pc.less(pc.abs(floats), _LARGEST_EXACT_INTEGER)
    if pc.all(pc.and_(rounded, small)).as_py() and _has_any(floats):
        return floats.cast(pa.int64())
    return floats


def _has_any(values: pa.ChunkedArray) -> bool:
    return values.null_count < len(values)  # type: ignore[no-any-return]


def _first_row(mask: pa.ChunkedArray) -> int:
    """Return the number, from 1, of the first row that is true."""
    return int(pc.index(mask, value=True).as_py()) + 1


def _is_number(kind: pa.DataType) -> bool:
    return (  # type: ignore[no-any-return]
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return (  # type: ignore[no-any-return]
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _place(name: str, table: str) -> str:
    return f"table {table!r}, column {name!r}"
