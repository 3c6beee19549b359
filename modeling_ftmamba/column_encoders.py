"""The encoder of each kind of column, and what all of them can do."""

from typing import Any, Protocol, Self

from numpy.typing import NDArray

from .category_columns import CategoricalEncoder, SetEncoder
from .configuration_ftmamba import Column
from .numeric_columns import NumericEncoder
from .time_columns import TimestampEncoder
from .vector_columns import VectorEncoder


class ColumnEncoder(Protocol):
    """A fitted column: R raw values in, an array of (R, `column.width`) out.

    Attributes:
        column: the column with its fitted fields.
        place: the column in words, for errors.
    """

    column: Column
    place: str

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn from the training rows; warn of a column that says nothing."""

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""

    def encode(self, values: Any) -> NDArray[Any]:
        """Encode a list, a numpy array or an Arrow array of R values."""


ENCODERS: dict[str, type[ColumnEncoder]] = {
    "numeric": NumericEncoder,
    "categorical": CategoricalEncoder,
    "categories": SetEncoder,
    "timestamp": TimestampEncoder,
    "vector": VectorEncoder,
}
