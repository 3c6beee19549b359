"""Encoding of `timestamp` columns: when, at what time of day, of the week and of the year.

Shapes: R rows, V distinct values.
"""

import warnings
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .arrow_values import (
    arrow_distinct,
    arrow_numbers,
    arrow_seconds,
    first_value,
    is_arrow_column,
    is_boolean,
    is_nested,
    one_array,
)
from .configuration_ftmamba import TIMESTAMP_DIMENSION, Column
from .texts import WrongValueError
from .vocabulary_file import damaged_array, saved_array

_DAY = 86_400
_YEAR_1, _YEAR_10_000 = -62_135_596_800, 253_402_300_800
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RULE = "must be a time: seconds since 1970 (UTC), ISO 8601 text or a date"
_RANGE_RULE = "must lie between the years 1 and 9999, in seconds since 1970 (not milliseconds)"


class TimestampEncoder:
    """Seven numbers a row: the standardised time, then sines and cosines; NaN is missing."""

    def __init__(self, column: Column, place: str, mean_and_slope: NDArray[np.float64]) -> None:
        self.column = replace(column, dimension=TIMESTAMP_DIMENSION)
        self.place = place
        self.mean_and_slope = mean_and_slope

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn mean and spread of the training rows."""
        seconds_R = epoch_seconds(values, place)
        known = seconds_R[~np.isnan(seconds_R)]
        if len(known) == 0 or known.min() == known.max():
            what = "is always the same" if len(known) else "has no value at all"
            warnings.warn(
                f"{place} {what} in the training rows; its standardised time becomes 0",
                stacklevel=2,
            )
            return cls(column, place, np.array([known[0] if len(known) else 0.0, 0.0]))
        return cls(column, place, np.array([known.mean(), 1 / known.std()]))

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder."""
        mean_and_slope = saved_array(arrays, "mean_and_slope", place, np.float64)
        if mean_and_slope.shape != (2,):
            rule = f"must hold two numbers, got shape {mean_and_slope.shape}"
            raise damaged_array(place, "mean_and_slope", rule)
        return cls(column, place, mean_and_slope)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""
        return {"mean_and_slope": self.mean_and_slope}

    def encode(self, values: Any) -> NDArray[np.float32]:
        """Return features (R, 7)."""
        seconds_R = epoch_seconds(values, self.place)
        missing_R = np.isnan(seconds_R)
        mean, slope = self.mean_and_slope
        features = np.empty((len(seconds_R), TIMESTAMP_DIMENSION), dtype=np.float32)
        features[:, 0] = (seconds_R - mean) * slope
        for index, phase_R in enumerate(calendar_phases(np.where(missing_R, 0.0, seconds_R))):
            features[:, 1 + 2 * index] = np.sin(2 * np.pi * phase_R)
            features[:, 2 + 2 * index] = np.cos(2 * np.pi * phase_R)
        features[missing_R] = np.nan
        return features


def calendar_phases(seconds_R: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return how much of its UTC day, week (from Monday) and year has passed, each in [0, 1)."""
    days_R = seconds_R / _DAY
    whole_R = np.floor(days_R).astype(np.int64)
    years_R = whole_R.view("datetime64[D]").astype("datetime64[Y]")
    start_R = years_R.astype("datetime64[D]").astype(np.int64)
    end_R = (years_R + 1).astype("datetime64[D]").astype(np.int64)
    thursday = 3  # 1970 began on one
    return (
        days_R - whole_R,
        np.mod(days_R + thursday, 7) / 7,
        (days_R - start_R) / (end_R - start_R),
    )


def epoch_seconds(values: Any, place: str) -> NDArray[np.float64]:
    """Return UTC seconds since 1970 (R,) in 64 bits, NaN for missing.

    A time without an offset is taken for UTC.

    Raises:
        ValueError: a value is no time, or too far away, as milliseconds are.
    """
    seconds_R = _seconds(values, place)
    with np.errstate(invalid="ignore"):
        far_R = (seconds_R < _YEAR_1) | (seconds_R >= _YEAR_10_000)
    if far_R.any():
        row = int(np.argmax(far_R))
        raise WrongValueError(place, row, float(seconds_R[row]), rule=_RANGE_RULE)
    return seconds_R


def _seconds(values: Any, place: str) -> NDArray[np.float64]:
    if is_arrow_column(values):
        return _seconds_of_arrow(one_array(values), place)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf" and values.ndim == 1:
        return values.astype(np.float64)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        micro = values.astype("datetime64[us]")
        return np.where(np.isnat(micro), np.nan, micro.astype(np.int64) / 1e6)
    rows = list(values)
    if set(map(type, rows)) <= {int, float}:
        return np.array(rows, dtype=np.float64)
    keys = list(map(_hashable, rows))
    codes_of = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    codes = np.fromiter(map(codes_of.__getitem__, keys), np.int64, len(keys))
    first = np.unique(codes, return_index=True)[1]
    return _seconds_of_distinct([rows[row] for row in first.tolist()], codes, place)


def _seconds_of_arrow(array: Any, place: str) -> NDArray[np.float64]:
    if array.null_count == len(array):
        return np.full(len(array), np.nan)
    if is_nested(array) or is_boolean(array):
        raise WrongValueError(place, *first_value(array), rule=_RULE)
    seconds_R = arrow_seconds(array)
    if seconds_R is None:
        seconds_R = arrow_numbers(array)
    if seconds_R is not None:
        return seconds_R
    codes, distinct = arrow_distinct(array)
    return _seconds_of_distinct(distinct, codes, place)


def _hashable(value: object) -> object:
    # True == 1 in Python, so a type must tell them apart; a list has no hash, and is an error.
    return (type(value), value if isinstance(value, str | int | float | date) else repr(value))


def _seconds_of_distinct(
    distinct: list[Any], codes: NDArray[np.int64], place: str
) -> NDArray[np.float64]:
    seconds_V = np.empty(len(distinct) + 1)
    seconds_V[-1] = np.nan
    for code, value in enumerate(distinct):
        try:
            seconds_V[code] = seconds_of(value)
        except (TypeError, ValueError, OverflowError):
            row = int(np.argmax(codes == code))
            raise WrongValueError(place, row, value, rule=_RULE) from None
    return seconds_V[codes]


def seconds_of(value: Any) -> float:
    """Return one value's UTC seconds since 1970, NaN for a missing one.

    Raises:
        TypeError, ValueError: the value is no time.
    """
    if value is None or value == "" or value != value:
        return float("nan")
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (value - _EPOCH).total_seconds()
    if isinstance(value, bool | np.bool_):
        raise TypeError("true and false are no times")
    return float(value)
