"""What people hand to the pipeline, and the errors that tell them what is wrong with it."""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from .configuration_ftmamba import near


class WrongInputError(ValueError):
    """Something that was handed to the pipeline cannot be.

    Attributes:
        parameter: `inputs`, or the name of a parameter.
        row: of the record, the first is 0; None where it is not about one.
        column: of the record; None where it is not about one.
    """

    def __init__(
        self, message: str, parameter: str, row: int | None = None, column: str | None = None
    ) -> None:
        super().__init__(message)
        self.parameter, self.row, self.column = parameter, row, column


def records_of(inputs: Any) -> Iterator[Any]:
    """Return the records of a list, a generator or a data set one by one.

    Raises:
        WrongInputError: the inputs are none of these.
    """
    is_table = hasattr(inputs, "columns") and (
        hasattr(inputs, "to_dict") or hasattr(inputs, "to_pylist")
    )
    if is_table:
        raise WrongInputError(
            f"a table ({type(inputs).__module__}.{type(inputs).__name__}) must be given as "
            "records; write table.to_dict('records') for pandas, table.to_dicts() for polars, "
            "table.to_pylist() for Arrow",
            "inputs",
        )
    if isinstance(inputs, str | bytes) or not hasattr(inputs, "__iter__"):
        if hasattr(inputs, "__len__") and not isinstance(inputs, str | bytes):
            return (inputs[row] for row in range(len(inputs)))
        raise WrongInputError(
            "inputs must be a record (dict), a list of records, a generator or a data set of "
            f"them, got {inputs!r:.80}",
            "inputs",
        )
    return iter(inputs)


def check_record(record: Any, row: int, names: Set[str]) -> None:
    """Check that a record is one, and that the model knows something of it, if it says anything.

    Args:
        record: raw columns.
        row: its number, for the error.
        names: the columns that the model knows.

    Raises:
        WrongInputError: it is no dict, or all its columns are unknown.
    """
    if not isinstance(record, Mapping):
        raise WrongInputError(
            f"{place_of_row(row)} must be a dict of column name to value, got {record!r:.80}",
            "inputs",
            row,
        )
    if record and names.isdisjoint(record):
        given = sorted(map(str, record))
        guess = next(filter(None, (near(name, names) for name in given)), "")
        raise WrongInputError(
            f"{place_of_row(row)} has no column that the model knows, got: "
            f"{', '.join(given[:10])}{guess}; known are: {', '.join(sorted(names))}",
            "inputs",
            row,
        )


def wrong_value(error: Any, first: int, column: str) -> WrongInputError:
    """Say of a `texts.WrongValueError` in which of all records it arose.

    Args:
        error: whose `row` counts from the first record of a batch.
        first: the number of that record.
        column: the one with the value.
    """
    row = first + error.row
    return WrongInputError(
        f"{place_of_row(row)}, column {column!r}: {error.rule}, got {error.value!r:.80}",
        "inputs",
        row,
        column,
    )


def place_of_row(row: int) -> str:
    """Name a record for an error."""
    return f"record {row} (the first is 0)"


def check_top_k(top_k: object, most: int) -> None:
    """Check how many items are asked for."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= most:
        raise WrongInputError(
            f"top_k must be a whole number from 1 to {most}, the items of the catalogue; "
            f"got {top_k!r:.80}",
            "top_k",
        )


def check_batch_size(batch_size: object) -> None:
    """Check how many records are taken together."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise WrongInputError(
            f"batch_size must be a whole number >= 1, got {batch_size!r}", "batch_size"
        )


def item_keys(exclude: Any) -> tuple[str, ...]:
    """Return the keys of the items to leave out.

    Raises:
        WrongInputError: they are no list of texts.
    """
    is_list = isinstance(exclude, Iterable) and not isinstance(exclude, str | bytes | Mapping)
    keys = tuple(exclude) if is_list else (None,)
    for key in keys:
        if not isinstance(key, str):
            wrong = key if is_list else exclude
            raise WrongInputError(
                f"exclude must be a list of item keys, which are texts, got {wrong!r:.80}; "
                "write exclude=['50', '181']",
                "exclude",
            )
    return keys


def check_parameters(given: Iterable[str], known: tuple[str, ...]) -> None:
    """Refuse a parameter that would otherwise be ignored."""
    for name in given:
        if name not in known:
            raise WrongInputError(
                f"the recommendation pipeline has no parameter {name!r}{near(name, known)}; "
                f"it has: {', '.join(known)}",
                name,
            )
