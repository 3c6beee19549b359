"""Any column's values as texts: the one rule that makes 5, 5.0 and "5" the same category.

Rows are first reduced to their distinct values, so that no Python code runs once a row.

Shapes: R rows, V distinct values.
"""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow_values import arrow_distinct, first_value, is_arrow_column, is_nested, one_array

_NUMBERS = (int, float, Decimal, np.number)
_BOOLS = (bool, np.bool_)
_TEXT_RULE = "must be a single text, number, true/false or date"


@dataclass(frozen=True)
class DistinctTexts:
    """R values as codes into their distinct texts.

    Attributes:
        codes: int64 (R,); -1, the last text, for a value that is missing.
        texts: V distinct values as texts, a text twice where two values are written alike; None
            and the empty text are missing, and the last is always None.
    """

    codes: NDArray[np.int64]
    texts: list[str | None]


def distinct_texts(values: Any, place: str) -> DistinctTexts:
    """Reduce a list, a numpy array or an Arrow array to its distinct texts.

    Args:
        values: R values; None and NaN are missing.
        place: what the values are, for the error.

    Raises:
        ValueError: a value is no single text, number, true/false or date.
    """
    if is_arrow_column(values):
        array = one_array(values)
        if not is_nested(array):
            codes, distinct = arrow_distinct(array)
        elif array.null_count == len(array):
            codes, distinct = np.full(len(array), -1), []
        else:
            raise WrongValueError(place, *first_value(array), rule=_TEXT_RULE)
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biufM" and values.ndim == 1:
        if values.dtype.kind == "M":
            values = values.astype("datetime64[us]")
        uniques, inverse = np.unique(values, return_inverse=True)
        codes, distinct = inverse.astype(np.int64, copy=False), uniques.tolist()
    else:
        rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
        codes, distinct = _distinct_of_list(rows, place)
    return DistinctTexts(codes, _canonical(distinct, codes, place))


def _distinct_of_list(values: list[Any], place: str) -> tuple[NDArray[np.int64], list[Any]]:
    try:
        if _mixes_bools_and_numbers(set(map(type, values))):
            values = list(map(canonical_text, values))  # Python holds True and 1 for the same key
        codes_of = dict(zip(values, range(len(values)), strict=True))
    except TypeError:
        row = next(row for row, value in enumerate(values) if not _has_text(value))
        raise WrongValueError(place, row, values[row], rule=_TEXT_RULE) from None
    distinct = list(codes_of)
    codes_of.update(zip(distinct, range(len(distinct)), strict=True))
    return np.fromiter(map(codes_of.__getitem__, values), np.int64, len(values)), distinct


def _mixes_bools_and_numbers(types: set[type]) -> bool:
    if len(types) < 2:
        return False
    bools = {kind for kind in types if issubclass(kind, _BOOLS)}
    return bool(bools) and any(issubclass(kind, _NUMBERS) for kind in types - bools)


def _canonical(distinct: list[Any], codes: NDArray[np.int64], place: str) -> list[str | None]:
    if set(map(type, distinct)) <= {str}:
        return [*distinct, None]
    try:
        return [*map(canonical_text, distinct), None]
    except TypeError:
        code, value = next((c, v) for c, v in enumerate(distinct) if not _has_text(v))
        row = int(np.argmax(codes == code))
        raise WrongValueError(place, row, value, rule=_TEXT_RULE) from None


def canonical_text(value: object) -> str | None:
    """Return the one text of a value, or None for a missing one.

    Whole numbers lose their point (5.0 is "5"), truth is "true" or "false", dates are ISO 8601,
    times with an offset are told in UTC. NaN and the empty text are missing.

    Raises:
        TypeError: the value has no such text.
    """
    if isinstance(value, str):
        return str(value) or None
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return _number_text(value)
    return _time_text(value)


def _number_text(value: float | Decimal) -> str | None:
    if value != value:
        return None
    if value in (math.inf, -math.inf):
        return str(float(value))
    if value == int(value):
        return str(int(value))
    return repr(float(value))


def _time_text(value: object) -> str | None:
    if isinstance(value, datetime):
        if value != value:  # pandas' NaT
            return None
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return value.isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no canonical text")


class WrongValueError(ValueError):
    """One value breaks its column's rule: thing, place, rule and value.

    Attributes:
        place: the column in words.
        row: of the value, the first is 0.
        value: the value.
        rule: what it had to be.
    """

    def __init__(self, place: str, row: int, value: object, *, rule: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(f"{place}, row {row} (the first is 0): {rule}, got {shown}")
        self.place, self.row, self.value, self.rule = place, row, value, rule


def _has_text(value: object) -> bool:
    try:
        hash(value)
        canonical_text(value)
    except TypeError:
        return False
    return True
