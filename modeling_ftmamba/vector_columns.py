"""Encoding of `vector` columns: precomputed embeddings, passed on as they are.

Shapes: R rows, W numbers of one vector.
"""

import warnings
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .arrow_values import (
    arrow_lists,
    arrow_numbers,
    first_value,
    is_arrow_column,
    is_list_column,
    one_array,
)
from .configuration_ftmamba import Column
from .texts import WrongValueError


class VectorEncoder:
    """W numbers a row, all NaN where the vector is missing."""

    def __init__(self, column: Column, place: str) -> None:
        self.column = column
        self.place = place

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn the number of dimensions, unless the column states it."""
        lengths_R = _members(values, place)[1]
        dimension = column.dimension or int(lengths_R[np.argmax(lengths_R >= 0)])
        if not (lengths_R >= 0).any():
            dimension = max(1, column.dimension)
            warnings.warn(
                f"{place} has no vector in the training rows; it is kept with {dimension} "
                "dimensions, always missing",
                stacklevel=2,
            )
        encoder = cls(replace(column, dimension=dimension), place)
        encoder.encode(values)
        return encoder

    @classmethod
    def from_arrays(cls, column: Column, place: str, _: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder, which has no arrays."""
        return cls(column, place)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save: none."""
        return {}

    def encode(self, values: Any) -> NDArray[np.float32]:
        """Return vectors (R, W).

        Raises:
            ValueError: a vector of another length, or with a member that is no finite number.
        """
        flat, lengths_R = _members(values, self.place)
        width = self.column.dimension
        present_R = lengths_R >= 0
        wrong_R = present_R & (lengths_R != width)
        if not wrong_R.any():
            vectors_RW = np.full((len(lengths_R), width), np.nan, dtype=np.float32)
            with np.errstate(over="ignore"):
                vectors_RW[present_R] = flat.reshape(-1, width)
            known_RW = ~np.isnan(vectors_RW)
            wrong_R = known_RW.any(axis=1) & ~(known_RW & ~np.isinf(vectors_RW)).all(axis=1)
            if not wrong_R.any():
                return vectors_RW
        row = int(np.argmax(wrong_R))
        raise WrongValueError(self.place, row, _value(values, row), rule=self._rule)

    @property
    def _rule(self) -> str:
        return f"must be a vector of {self.column.dimension} finite numbers"


def _members(values: Any, place: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the numbers of all vectors end to end and the length of each (R,), -1 for missing."""
    if is_arrow_column(values):
        return _members_of_arrow(one_array(values), place)
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf":
        return values.reshape(-1), np.full(len(values), values.shape[1])
    rows = list(values)
    vectors = [np.asarray(value) for value in rows if not _is_missing(value)]
    if not all(vector.ndim == 1 and vector.dtype.kind in "biuf" for vector in vectors):
        row = next(row for row, value in enumerate(rows) if not _is_vector(value))
        raise WrongValueError(place, row, rows[row], rule="must be a list of numbers")
    lengths_R = np.full(len(rows), -1, dtype=np.int64)
    lengths_R[[not _is_missing(value) for value in rows]] = list(map(len, vectors))
    return np.concatenate(vectors) if vectors else np.empty(0), lengths_R


def _members_of_arrow(array: Any, place: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if array.null_count == len(array):
        return np.empty(0), np.full(len(array), -1)
    numbers = None
    if is_list_column(array):
        flat, lengths_R = arrow_lists(array)
        numbers = arrow_numbers(flat)
    if numbers is None:
        raise WrongValueError(place, *first_value(array), rule="must be a list of numbers")
    return numbers, lengths_R


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _is_vector(value: object) -> bool:
    array = np.asarray(value)
    return _is_missing(value) or (array.ndim == 1 and array.dtype.kind in "biuf")


def _value(values: Any, row: int) -> object:
    value = values[row]
    return value.as_py() if is_arrow_column(values) else value
