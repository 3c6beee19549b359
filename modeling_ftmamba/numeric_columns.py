"""Encoding of `numeric` columns: standardised, or mapped to normal scores through quantiles.

Shapes: R rows, V distinct values, T entries of a table of quantiles.
"""

import warnings
from dataclasses import replace
from decimal import Decimal
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .arrow_values import arrow_numbers, first_value, is_arrow_column, one_array
from .configuration_ftmamba import Column
from .texts import WrongValueError
from .vocabulary_file import damaged_array, saved_array

N_BINS = 48
N_QUANTILES = 1000
_SMALLEST_BIN = 1e-4
_RULE = "must be a finite number"
_NUMBERS = (int, float, Decimal, np.number, np.bool_, type(None))


class NumericEncoder:
    """One scaled number a row; NaN is missing.

    The state is a table: the scaled value is interpolated linearly between its entries and stays
    at the end values beyond them (`quantile`), or it is one line, `(x - mean) * slope`.
    """

    def __init__(self, column: Column, place: str, table: NDArray[np.float64]) -> None:
        self.column = column
        self.place = place
        self.table = table

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn scale and bins of the training rows."""
        numbers_R = finite_numbers(values, place)
        known = numbers_R[~np.isnan(numbers_R)]
        constant = len(known) == 0 or known.min() == known.max()
        if constant:
            _warn_about_constant(known, place, scaled=column.scaling != "none")
        if column.scaling == "none":
            table = np.array([0.0, 1.0])
        elif constant:
            table = np.array([known[0] if len(known) else 0.0, 0.0])
        elif column.scaling == "standard":
            table = _mean_and_slope(known, place)
        else:
            table = _normal_scores(known)
        encoder = cls(replace(column, edges=()), place, table)
        if not constant:
            edges = quantile_edges(encoder.scale(known).astype(np.float32))
            encoder.column = replace(column, edges=edges)
        return encoder

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder."""
        table = saved_array(arrays, "table", place, np.float64)
        is_line = table.shape == (2,)
        if not is_line and (table.ndim != 2 or len(table) != 2 or table.shape[1] < 1):
            rule = f"must have shape (2,) or (2, T), got {table.shape}"
            raise damaged_array(place, "table", rule)
        if not is_line and (table[:, 1:] < table[:, :-1]).any():
            raise damaged_array(place, "table", "must rise")
        return cls(column, place, table)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""
        return {"table": self.table}

    def encode(self, values: Any) -> NDArray[np.float32]:
        """Return scaled numbers (R, 1)."""
        numbers_R = finite_numbers(values, self.place)
        with np.errstate(over="ignore"):
            scaled_R = self.scale(numbers_R).astype(np.float32)
        if np.isinf(scaled_R).any():
            row = int(np.argmax(np.isinf(scaled_R)))
            raise WrongValueError(
                self.place, row, float(numbers_R[row]), rule="must fit in 32 bits once scaled"
            )
        return scaled_R[:, None]

    def scale(self, numbers_R: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scaled numbers (R,), still in 64 bits."""
        if self.table.ndim == 1:
            mean, slope = self.table
            return (numbers_R - mean) * slope
        return np.interp(numbers_R, self.table[0], self.table[1])


def finite_numbers(values: Any, place: str) -> NDArray[np.float64]:
    """Return a column's numbers (R,) in 64 bits; None and NaN are NaN.

    Raises:
        ValueError: a value is no number, or infinite.
    """
    numbers_R = _numbers(values, place)
    infinite_R = np.isinf(numbers_R)
    if infinite_R.any():
        row = int(np.argmax(infinite_R))
        raise WrongValueError(place, row, float(numbers_R[row]), rule=_RULE)
    return numbers_R


def _numbers(values: Any, place: str) -> NDArray[np.float64]:
    if is_arrow_column(values):
        array = one_array(values)
        numbers_R = arrow_numbers(array)
        if numbers_R is None and array.null_count < len(array):
            raise WrongValueError(place, *first_value(array), rule=_RULE)
        return np.full(len(array), np.nan) if numbers_R is None else numbers_R
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.ndim == 1:
        return values.astype(np.float64)
    rows = list(values)
    if not all(issubclass(kind, _NUMBERS) for kind in set(map(type, rows))):
        row = next(row for row, value in enumerate(rows) if not isinstance(value, _NUMBERS))
        raise WrongValueError(place, row, rows[row], rule=_RULE)
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        row = next(row for row, value in enumerate(rows) if value and abs(value) > 1e300)
        raise WrongValueError(place, row, rows[row], rule=_RULE) from None


def quantile_edges(scaled: NDArray[np.float32]) -> tuple[float, ...]:
    """Return up to `N_BINS` + 1 rising bin edges, at the quantiles of the training values."""
    candidates = np.unique(np.quantile(scaled.astype(np.float64), np.linspace(0, 1, N_BINS + 1)))
    smallest = _SMALLEST_BIN * (candidates[-1] - candidates[0])
    edges = [candidates[0]]
    for candidate in candidates[1:]:
        if candidate - edges[-1] > smallest:
            edges.append(candidate)
    return tuple(map(float, edges))


def _mean_and_slope(known: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = known.mean(), known.std()
    if not (np.isfinite(mean) and np.isfinite(spread) and spread > 0):
        raise ValueError(
            f"{place} cannot be standardised, its values lie between {known.min():g} and "
            f"{known.max():g}; give the column scaling 'quantile'"
        )
    return np.array([mean, 1 / spread])


def _normal_scores(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, T): values, and the normal score of the middle of each one's ranks."""
    distinct_V, counts_V = np.unique(known, return_counts=True)
    if len(distinct_V) > N_QUANTILES:
        kept = np.unique(np.linspace(0, len(known) - 1, N_QUANTILES).round().astype(np.int64))
        kept = np.unique(np.searchsorted(np.cumsum(counts_V), kept, side="right"))
    else:
        kept = np.arange(len(distinct_V))
    ranks_V = (np.cumsum(counts_V) - counts_V / 2) / len(known)
    scores = torch.special.ndtri(torch.from_numpy(ranks_V[kept])).numpy()
    return np.stack([distinct_V[kept], scores])


def _warn_about_constant(known: NDArray[np.float64], place: str, *, scaled: bool) -> None:
    what = f"is constant ({known[0]:g})" if len(known) else "has no value at all"
    then = "every value becomes 0" if scaled else "it is kept"
    warnings.warn(
        f"{place} {what} in the training rows; {then} and says next to nothing", stacklevel=2
    )
