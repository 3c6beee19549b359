"""All fitted columns of one tower: raw records in, the tower's arrays out.

Shapes: B records.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .category_columns import CategoricalEncoder, SetEncoder
from .column_encoders import ENCODERS, ColumnEncoder
from .column_words import in_words
from .configuration_ftmamba import HISTORY, Column, columns_of_tensor, near
from .raw_records import RawColumns, raw_records, raw_table
from .vocabulary_file import damaged_array

DTYPES = {
    "numeric": np.float32,
    "category_ids": np.int64,
    "set_ids": np.int64,
    "dense": np.float32,
}

# Kinds whose fitted columns have a width of their own, of at least one slot.
_WIDE = ("categories", "timestamp", "vector")


class TowerEncoder:
    """The encoders of a tower's columns, in their order.

    A history has none: its events are interactions, no value of a record.

    Attributes:
        tower: `user` or `item`.
        columns: with their fitted fields, the history among them.
    """

    def __init__(
        self, tower: str, encoders: Iterable[ColumnEncoder], columns: Iterable[Column]
    ) -> None:
        self.tower = tower
        self._encoders = {encoder.column.name: encoder for encoder in encoders}
        self.columns = tuple(
            column if column.kind == HISTORY else self._encoders[column.name].column
            for column in columns
        )
        self._of_records = tuple(column for column in self.columns if column.kind != HISTORY)

    @classmethod
    def fit(cls, tower: str, columns: tuple[Column, ...], source: Any) -> Self:
        """Learn every column from training rows.

        Raises:
            ValueError: a column is absent or empty, or a value has the wrong type.
        """
        fitted = tuple(column for column in columns if column.kind != HISTORY)
        raw = raw_table(source, fitted, tower) if fitted else RawColumns({}, 0)
        return cls(tower, [_fit_column(column, raw, tower) for column in fitted], columns)

    @classmethod
    def from_arrays(
        cls, tower: str, columns: tuple[Column, ...], arrays: dict[str, NDArray[Any]]
    ) -> Self:
        """Rebuild a saved tower from the arrays of both.

        Raises:
            ValueError: an array is absent, damaged or of no column, or a column does not fit them.
        """
        encoders: list[ColumnEncoder] = []
        parts_of = _parts(tower, columns, arrays)
        for column in columns:
            if column.kind == HISTORY:
                continue
            place = place_of(column, tower)
            encoder = ENCODERS[column.kind].from_arrays(column, place, parts_of[column.name])
            if encoder.column != column or (column.kind in _WIDE and not column.width):
                raise damaged_array(
                    place, "column", f"does not fit {column.to_dict()!r:.200} of the JSON file"
                )
            encoders.append(encoder)
        return cls(tower, encoders, columns)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""
        return {
            f"{self.tower}/{name}/{part}": array
            for name, encoder in self._encoders.items()
            for part, array in encoder.to_arrays().items()
        }

    def encode(self, source: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays (B, slots) of records of any form, named `user_numeric` and so on."""
        raw = raw_records(source, self.columns, self.tower)
        absent = [None] * raw.n_rows
        arrays: dict[str, NDArray[Any]] = {}
        for tensor, dtype in DTYPES.items():
            columns = columns_of_tensor(self.columns, tensor)
            if not columns:
                continue
            array = np.empty((raw.n_rows, sum(column.width for column in columns)), dtype=dtype)
            slot = 0
            for column in columns:
                values = raw.values.get(column.name, absent)
                encoded = self._encoders[column.name].encode(values)
                array[:, slot : slot + column.width] = encoded
                slot += column.width
            arrays[f"{self.tower}_{tensor}"] = array
        return arrays

    def describe(self, arrays: dict[str, NDArray[Any]]) -> dict[str, str]:
        """Return in words what the first encoded record says, by column."""
        found = {}
        for tensor in DTYPES:
            slot = 0
            for column in columns_of_tensor(self.columns, tensor):
                slots = arrays[f"{self.tower}_{tensor}"][0, slot : slot + column.width]
                found[column.name] = in_words(self._encoders[column.name], slots)
                slot += column.width
        return {column.name: found[column.name] for column in self._of_records}

    def encode_numeric(self, name: str, values: Any) -> NDArray[np.float32]:
        """Scale raw values (B,) of one numeric column."""
        numeric_slots(self.columns, [name], self.tower)
        scaled_B: NDArray[np.float32] = self._encoders[name].encode(values)[:, 0]
        return scaled_B

    def known_values(self, name: str) -> list[str]:
        """Return the texts that a column knows, the most frequent in training first.

        Raises:
            ValueError: the tower has no column of that name that holds categories.
        """
        known = {
            column: encoder.vocabulary.texts
            for column, encoder in self._encoders.items()
            if isinstance(encoder, CategoricalEncoder | SetEncoder)
        }
        if name not in known:
            raise ValueError(
                f"the {self.tower}s have no column {name!r} of categories{near(name, known)}; "
                f"they have: {', '.join(known) or 'none'}"
            )
        return list(known[name])


def _parts(
    tower: str, columns: Iterable[Column], arrays: dict[str, NDArray[Any]]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the arrays of each column by their names in it."""
    parts: dict[str, dict[str, NDArray[Any]]] = {column.name: {} for column in columns}
    for name, array in arrays.items():
        owner, _, rest = name.partition("/")
        column, _, part = rest.rpartition("/")
        if owner == tower and column not in parts:
            raise damaged_array(f"{tower} column {column!r:.80}", part[:80], "is of no column")
        if owner == tower:
            parts[column][part] = array
    return parts


def numeric_slots(columns: tuple[Column, ...], names: Iterable[str], tower: str) -> list[int]:
    """Return the slots of numeric columns in the tower's tensor `numeric`.

    Raises:
        ValueError: a name is of no numeric column.
    """
    slots = [column.name for column in columns_of_tensor(columns, "numeric")]
    wanted = list(names)
    for name in wanted:
        if name not in slots:
            raise ValueError(
                f"the {tower}s have no numeric column {name!r}{near(name, slots)}; "
                f"they have: {', '.join(slots) or 'none'}"
            )
    return [slots.index(name) for name in wanted]


def place_of(column: Column, tower: str) -> str:
    """Name a column for an error."""
    return f"{tower} column {column.name!r}"


def _fit_column(column: Column, raw: RawColumns, tower: str) -> ColumnEncoder:
    place = place_of(column, tower)
    values = raw.values.get(column.name)
    if values is None:
        remedy = (
            "give the popularity of the training rows"
            if column.popularity_days
            else f"these have: {', '.join(raw.keys)}"
        )
        raise ValueError(
            f"{place} is not in the training rows{near(column.name, raw.keys)}; {remedy}"
        )
    if len(values) == 0:
        raise ValueError(f"{place} has no training rows; give at least one")
    return ENCODERS[column.kind].fit(column, place, values)
