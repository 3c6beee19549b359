"""What the processor asks of Apache Arrow; the only file that knows it, since it is optional.

A column's values are a list, a numpy array or, where pyarrow is installed, an Arrow array. What
each function here returns is plain numpy and Python, so that one code encodes all three.

Shapes: R rows, F members of all rows' lists together.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import pyarrow as pa
except ImportError:  # the bare environment of a checkpoint's user
    pa = None


_LARGEST_32_BIT_CHUNK = 2**31 - 1


def is_arrow_column(values: object) -> bool:
    """Tell whether the values are an Arrow array, in one chunk or several."""
    return pa is not None and isinstance(values, pa.Array | pa.ChunkedArray)


def arrow_table(source: object) -> Any:
    """Return a `pyarrow.Table` of anything that offers Arrow data, or None.

    Such are tables of pyarrow, pandas and polars (the Arrow PyCapsule interface), and a
    `datasets.Dataset`.
    """
    if pa is None:
        return None
    if isinstance(source, pa.Table):
        return source
    if hasattr(source, "with_format") and hasattr(source, "__getitem__"):
        return source.with_format("arrow")[:]
    if hasattr(source, "__arrow_c_stream__") and not is_arrow_column(source):
        return pa.table(source)
    return None


def one_array(values: Any) -> Any:
    """Return the column as one Arrow array of its storage type."""
    if isinstance(values, pa.ChunkedArray):
        if values.num_chunks == 1:
            values = values.chunk(0)
        else:
            if values.nbytes > _LARGEST_32_BIT_CHUNK and pa.types.is_string(values.type):
                values = values.cast(pa.large_string())
            values = values.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        return values.storage
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def is_nested(array: Any) -> bool:
    """Tell whether the rows are lists, maps or structures."""
    return bool(pa.types.is_nested(array.type))


def is_boolean(array: Any) -> bool:
    """Tell whether the rows are true or false."""
    return bool(pa.types.is_boolean(array.type))


def is_text(array: Any) -> bool:
    """Tell whether the rows are texts, in a dictionary or not."""
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def first_value(array: Any) -> tuple[int, object]:
    """Return the row of the first value that is not null, and the value."""
    row = int(np.argmax(array.is_valid().to_numpy(zero_copy_only=False)))
    return row, array[row].as_py()


def arrow_distinct(array: Any) -> tuple[NDArray[np.int64], list[Any]]:
    """Return codes (R,) into the distinct values, -1 for null, and these."""
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    codes = encoded.indices
    if codes.null_count:
        codes = codes.fill_null(-1)
    distinct = encoded.dictionary
    if pa.types.is_timestamp(distinct.type):
        distinct = distinct.cast(pa.timestamp("us", distinct.type.tz), safe=False)
    return codes.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), distinct.to_pylist()


def arrow_numbers(array: Any) -> NDArray[np.float64] | None:
    """Return the numbers (R,), NaN for null, or None where the type is no number."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    number = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )
    if not number:
        return None
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(numbers, dtype=np.float64)


def arrow_seconds(array: Any) -> NDArray[np.float64] | None:
    """Return UTC seconds since 1970 (R,), NaN for null, or None where Arrow cannot tell.

    Arrow can of timestamps, dates and, if all are written without an offset, ISO 8601 texts.
    """
    kind = array.type
    temporal = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if not temporal and not (is_text(array) and not pa.types.is_dictionary(kind)):
        return None
    try:
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        times = array.cast(pa.timestamp("us", zone), safe=False)
    except pa.ArrowInvalid:
        return None
    microseconds = times.cast(pa.int64())
    seconds = microseconds.fill_null(0).to_numpy(zero_copy_only=False) / 1e6
    if times.null_count:
        seconds[times.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return np.asarray(seconds, dtype=np.float64)


def is_list_column(array: Any) -> bool:
    """Tell whether the rows are lists."""
    kind = array.type
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def arrow_lists(array: Any) -> tuple[Any, NDArray[np.int64]]:
    """Return the members of all lists (F,) as an Arrow array, and the lengths (R,), -1 for null."""
    lengths = array.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    return one_array(array.flatten()), lengths.astype(np.int64)
