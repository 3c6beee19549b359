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
from .columns import Column
from .texts import wrong_value


class VectorEncoder:
    """W numbers a row, all NaN where the vector is missing."""

    def __init__(self, column: Column, place: str) -> None:
        self.column = column
        self.place = place

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn the number of dimensions, unless the column states it."""
        if not column.dimension:
            dimension = _first_length(values)
            if not dimension:
                dimension = 1
                warnings.warn(
                    f"{place} has no vector in the training rows; it is kept with one dimension, "
                    "always missing",
                    stacklevel=2,
                )
            column = replace(column, dimension=dimension)
        encoder = cls(column, place)
        encoder.encode(values)
        return encoder

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder, which has no arrays."""
        assert not arrays
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
        wrong_R = (lengths_R >= 0) & (lengths_R != width)
        if flat is None or wrong_R.any():
            row = int(np.argmax(wrong_R))
            raise wrong_value(self.place, row, _row(values, row), rule=self._rule)
        present_R = lengths_R >= 0
        vectors_RW = np.full((len(lengths_R), width), np.nan, dtype=np.float32)
        with np.errstate(over="ignore"):
            vectors_RW[present_R] = flat.reshape(-1, width)
        bad_R = present_R & ~np.isfinite(vectors_RW).all(axis=1)
        if bad_R.any():
            row = int(np.argmax(bad_R))
            raise wrong_value(self.place, row, _row(values, row), rule=self._rule)
        return vectors_RW

    @property
    def _rule(self) -> str:
        return f"must be a vector of {self.column.dimension} finite numbers"
