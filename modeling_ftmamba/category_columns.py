"""Encoding of `categorical` columns and of `categories`, which hold a set a row.

Shapes: R rows, V distinct values, F members of all rows' sets, M members kept of one set.
"""

import warnings
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .arrow_values import (
    arrow_lists,
    first_value,
    is_arrow_column,
    is_list_column,
    is_text,
    one_array,
)
from .configuration_ftmamba import MISSING_ID, PADDING_ID, UNSEEN_ID, Column
from .texts import DistinctTexts, WrongValueError, distinct_texts
from .vocabulary import Vocabulary, fit_vocabulary, saved_vocabulary

_AROUND_MEMBERS = " \t\r\n"
_is_none = partial(is_, None)


class CategoricalEncoder:
    """One id a row."""

    def __init__(self, column: Column, place: str, vocabulary: Vocabulary) -> None:
        self.column = replace(column, vocabulary_size=vocabulary.size)
        self.place = place
        self.vocabulary = vocabulary

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn the vocabulary of the training rows."""
        distinct = distinct_texts(values, place)
        counts_V = _counts(distinct)
        vocabulary = fit_vocabulary(distinct.texts, counts_V, column)
        _warn_if_all_alike(vocabulary.ids(distinct.texts)[counts_V > 0, None], place)
        return cls(column, place, vocabulary)

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder."""
        return cls(column, place, saved_vocabulary(column, place, arrays))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""
        return self.vocabulary.to_arrays()

    def encode(self, values: Any) -> NDArray[np.int64]:
        """Return ids (R, 1)."""
        distinct = distinct_texts(values, self.place)
        return self.vocabulary.ids(distinct.texts)[distinct.codes, None]


class SetEncoder:
    """The ids of a set's members, ascending, each once, then padding.

    The order of the members means nothing. A set with more members than slots keeps those known
    best: ids ascend from the most frequent text to the hash buckets; the unseen id comes last. A
    missing set is `[MISSING_ID]`, an empty one padding alone.
    """

    def __init__(self, column: Column, place: str, vocabulary: Vocabulary) -> None:
        self.column = replace(column, vocabulary_size=vocabulary.size)
        self.place = place
        self.vocabulary = vocabulary

    @classmethod
    def fit(cls, column: Column, place: str, values: Any) -> Self:
        """Learn the vocabulary of the training rows and the size of their largest set."""
        members, lengths = set_members(values, column.separator, place)
        vocabulary = fit_vocabulary(members.texts, _counts(members), column)
        max_length = column.max_length or max(1, int(lengths.max(initial=1)))
        encoder = cls(replace(column, max_length=max_length), place, vocabulary)
        _warn_if_all_alike(encoder.encode(values), place)
        return encoder

    @classmethod
    def from_arrays(cls, column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild a saved encoder."""
        return cls(column, place, saved_vocabulary(column, place, arrays))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the state to save."""
        return self.vocabulary.to_arrays()

    def encode(self, values: Any) -> NDArray[np.int64]:
        """Return ids (R, M)."""
        members, lengths_R = set_members(values, self.column.separator, self.place)
        ids_V = self.vocabulary.ids(members.texts)
        last = self.vocabulary.size
        ids_V[ids_V == UNSEEN_ID] = last
        ids_V[ids_V == MISSING_ID] = PADDING_ID  # a member without a text is none
        keys_F = np.repeat(np.arange(len(lengths_R)) * (last + 1), np.maximum(lengths_R, 0))
        keys_F += ids_V[members.codes]
        keys_F = keys_F[ids_V[members.codes] != PADDING_ID]
        keys_F.sort()
        keys_F = keys_F[np.diff(keys_F, prepend=-1) != 0]
        rows_F, ids_F = np.divmod(keys_F, last + 1)
        ids_F[ids_F == last] = UNSEEN_ID
        first_R = np.searchsorted(rows_F, np.arange(len(lengths_R)))
        slots_F = np.arange(len(rows_F)) - first_R[rows_F]
        kept_F = slots_F < self.column.max_length
        ids_RM = np.full((len(lengths_R), self.column.max_length), PADDING_ID, dtype=np.int64)
        ids_RM[lengths_R < 0, 0] = MISSING_ID
        ids_RM[rows_F[kept_F], slots_F[kept_F]] = ids_F[kept_F]
        return ids_RM


def set_members(values: Any, separator: str, place: str) -> tuple[DistinctTexts, NDArray[np.int64]]:
    """Return the members (F,) of all rows' sets and the number of each row (R,), -1 for missing.

    Args:
        values: R lists (or sets, tuples, arrays), or R texts to be split.
        separator: what stands between the members of a text; empty where texts are not allowed.
        place: what the values are, for the error.

    Raises:
        ValueError: a value is neither a list nor a text, or a text without a separator.
    """
    if is_arrow_column(values):
        array = one_array(values)
        if is_list_column(array):
            return _distinct_members(*arrow_lists(array), place)
        if array.null_count == len(array):
            return distinct_texts([], place), np.full(len(array), -1)
        if not (is_text(array) and separator):
            raise _wrong_set(place, *first_value(array), separator=separator)
        return _split_texts(distinct_texts(array, place), separator)
    rows = list(values)
    if separator and set(map(type, rows)) <= {str, type(None)}:
        return _split_texts(distinct_texts(rows, place), separator)
    return _members_of_rows(rows, separator, place)


def _split_texts(
    distinct: DistinctTexts, separator: str
) -> tuple[DistinctTexts, NDArray[np.int64]]:
    sets_V = [split_set(text, separator) for text in distinct.texts[:-1]]
    lengths_V = np.fromiter(map(len, sets_V), np.int64, len(sets_V))
    missing_V = np.array([not text for text in distinct.texts])
    members = distinct_texts(list(chain.from_iterable(sets_V)), "")
    # Repeat each distinct text's members once for every row that has it.
    lengths_V = np.append(lengths_V, 0)
    starts_V = np.cumsum(lengths_V) - lengths_V
    lengths_R = lengths_V[distinct.codes]
    ends_R = np.cumsum(lengths_R)
    places_F = np.arange(ends_R[-1] if len(ends_R) else 0)
    places_F += np.repeat(starts_V[distinct.codes] - (ends_R - lengths_R), lengths_R)
    lengths_R[missing_V[distinct.codes]] = -1
    return DistinctTexts(members.codes[places_F], members.texts), lengths_R


def split_set(text: str | None, separator: str) -> list[str]:
    """Return the members of a set written as one text, without the blanks around them."""
    if not text:
        return []
    members = [member.strip(_AROUND_MEMBERS) for member in text.split(separator)]
    return [member for member in members if member]


def _members_of_rows(
    rows: list[Any], separator: str, place: str
) -> tuple[DistinctTexts, NDArray[np.int64]]:
    types = set(map(type, rows))
    if not types <= {list, type(None)}:
        rows = [_members_of(value, separator, place, row) for row, value in enumerate(rows)]
    missing_R = np.fromiter(map(_is_none, rows), np.bool_, len(rows))
    sets = [members or () for members in rows]
    lengths_R = np.fromiter(map(len, sets), np.int64, len(sets))
    lengths_R[missing_R] = -1
    return _distinct_members(list(chain.from_iterable(sets)), lengths_R, place)


def _members_of(value: Any, separator: str, place: str, row: int) -> list[Any] | None:
    """Return a single value of a set column as a list, or None for a missing one."""
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    if isinstance(value, str) and separator:
        return split_set(value, separator) if value else None
    if value is None or (isinstance(value, float) and value != value):
        return None
    raise _wrong_set(place, row, value, separator=separator)


def _distinct_members(
    members: Any, lengths_R: NDArray[np.int64], place: str
) -> tuple[DistinctTexts, NDArray[np.int64]]:
    try:
        return distinct_texts(members, place), lengths_R
    except WrongValueError as error:
        ends_R = np.cumsum(np.maximum(lengths_R, 0))
        row = int(np.searchsorted(ends_R, error.row, side="right"))
        raise WrongValueError(place, row, error.value, rule=f"a member {error.rule}") from None


def _wrong_set(place: str, row: int, value: object, *, separator: str) -> ValueError:
    rule = "must be a list of texts"
    if separator:
        rule += f", or one text with {separator!r} between its members"
    elif isinstance(value, str):
        rule += "; to split a text, give the column a separator"
    return WrongValueError(place, row, value, rule=rule)


def _counts(distinct: DistinctTexts) -> NDArray[np.int64]:
    n_texts = len(distinct.texts)
    return np.bincount(distinct.codes % n_texts, minlength=n_texts)


def _warn_if_all_alike(ids_RM: NDArray[np.int64], place: str) -> None:
    if (ids_RM == ids_RM[0]).all():
        missing = ids_RM[0, 0] == MISSING_ID
        what = "has no value" if missing else "is the same"
        warnings.warn(
            f"{place} {what} in every training row; it is kept and tells the model nothing",
            stacklevel=2,
        )
