"""Raw values to arrays: one conversion of a value, packed texts, encoders of columns.

A column's values are a list, a numpy array or, where pyarrow is installed, an Arrow array.

Shapes: R rows, V distinct values, F members of all rows' lists, M slots of one set, W numbers of a
vector, N texts, Z bytes.
"""

import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cached_property, partial
from hashlib import blake2b
from itertools import chain, repeat
from types import NoneType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .configuration_ftmamba import (
    MISSING_ID,
    N_SPECIAL_IDS,
    PADDING_ID,
    TIMESTAMP_DIMENSION,
    UNSEEN_ID,
    Column,
)  # fmt: skip

try:
    import pyarrow as pa
except ImportError:  # a checkpoint's user may not have it
    pa = None

TEXT_RULE = "must be a single text, number, true/false or date"
NUMBER_RULE = "must be a finite number"
_SPLIT = "; to split a text, give the column a separator"
TIME_RULE = (
    "must be a time between the years 1 and 9999: ISO 8601 text such as 2024-01-31 18:05, a date, "
    "or less than 1e11 seconds since 1970 in UTC (not milliseconds)"
)
_AGAIN = "download or save the checkpoint again"
_YEAR_1, LATEST_SECONDS = -62_135_596_800, 10**11  # the year 5138: larger ones are milliseconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MISSING_TEXTS = ("", "?", "-", "nan", "null", "n/a", "#n/a", "<na>", "nat")  # in lower case
MISSING_NUMBERS = (*MISSING_TEXTS, "na", "none", ".")  # and times
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
OTHER_TEXT = (
    r"(True|TRUE|False|FALSE|[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}[-+:.0-9Z]*"
    r"|-?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]{1,3})?|[eE][+-][0-9]{1,3}))"
)
LIST = r"""[\[({]\s*['"].*['"]\s*,?\s*[\])}]|\[\s*\]"""  # of texts, as Python writes one
BRACKETS, BETWEEN = r"""^[\[({]\s*['"]?|['"]?\s*,?\s*[\])}]$""", r"""['"]\s*,\s*['"]"""
_NUMBER, _OTHER_TEXT = re.compile(NUMBER), re.compile(OTHER_TEXT)
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?|[0-9]{8}")
TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "on", "1", "ja", "j", "si", "sí", "oui"), "true")
TRUTHS |= dict.fromkeys(("false", "f", "no", "n", "off", "0", "nein", "non", "não"), "false")
TRUTHS |= {form(word): truth for word, truth in TRUTHS.items() for form in (str.upper, str.title)}
Members = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[str | None]]


class WrongValueError(ValueError):
    """The value in one row (the first is 0) of a column, by its name, breaks the column's rule."""

    def __init__(self, name: str, row: int, value: object, *, rule: str) -> None:
        self.problem = f"{rule}, got {' '.join(repr(value).split()):.80}"
        super().__init__(f"{name}, row {row} (the first is 0): {self.problem}")
        self.name, self.row, self.value, self.rule = name, row, value, rule


def is_missing(value: object) -> bool:
    """Tell whether a value is None, NaN, NaT, pandas' NA or, whatever its case, a missing text."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING_TEXTS
    if isinstance(value, float | Decimal | np.floating):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def text_of(value: object) -> str | None:
    """Return the one text of a key, a category or a member of a set; None where it is missing.

    36, 36.0, `np.int8(36)`, "36" and "36.0" are "36", 8.50 is "8.5", truth "true" or "false". Times
    are ISO 8601 in UTC, dates alone at midnight. A text of one of these (`OTHER_TEXT`) is what it
    says, but "007" and "1e5" are no numbers. Bytes are UTF-8; blanks around a text do not count.
    """
    value = value.decode() if isinstance(value, bytes) else value
    if value is None or isinstance(value, str):
        text = (value or "").strip()
        if not _OTHER_TEXT.fullmatch(text):
            return None if text.lower() in MISSING_TEXTS else text
        if text[0] in "TF":
            return text.lower()
        try:
            as_number = float if "e" in text.lower() else Decimal
            value = datetime.fromisoformat(text) if ":" in text else as_number(text)
        except ValueError:
            return text
    value = python_value(value)
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal):
        is_whole = value not in (math.inf, -math.inf) and value == int(value)
        return str(int(value)) if is_whole else repr(float(value))
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        value = value if value.time() != time() else value.date()
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"got {' '.join(repr(value).split()):.80}")


def seconds_of(value: object) -> float:
    """Return the UTC seconds of a time by `TIME_RULE`, NaN where missing; no offset means UTC."""
    value = python_value(value)
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        text = value.strip()
        is_iso = _ISO.fullmatch(text) or text[0] in "tTfF"  # truth is no number here
        value = datetime.fromisoformat(text) if is_iso else number_of(text)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH).total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"{type(value).__name__} is no time")
    if not (_YEAR_1 <= value < LATEST_SECONDS or value != value):
        raise ValueError("too far away")
    return float(value)


def number_of(value: object) -> float:
    """Return a finite number, also of a text of one or of truth; NaN where it is missing."""
    value = python_value(value)
    if isinstance(value, str):
        text = value.strip().lower()
        value = None if text in MISSING_NUMBERS else {"true": 1, "false": 0}.get(text, text)
        value = float(text) if _NUMBER.fullmatch(text) else value
    if is_missing(value):
        return math.nan
    number = float(value) if isinstance(value, int | float | Decimal) else math.inf
    if math.isinf(number):
        raise TypeError(f"{type(value).__name__} is no finite number")
    return number


def python_value(value: object) -> object:
    """Return a value of NumPy as Python's, of microseconds where it is a time."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        value = value.astype(f"{value.dtype.kind}8[us]")
    if isinstance(value, np.floating):  # of 0.1 in 32 bits not 0.10000000149
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def column_texts(values: Any, name: str) -> tuple[NDArray[np.int64], list[str | None]]:
    """Return codes (R,), -1 for null, into texts (V,), some of them alike, the last None."""
    return _converted(values, text_of, name, TEXT_RULE)


def column_seconds(values: Any, name: str) -> NDArray[np.float64]:
    """Return UTC seconds since 1970 (R,), NaN for missing; see `seconds_of`."""
    if is_arrow(values) and (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        micro = pa.timestamp("us", getattr(values.type, "tz", None))
        values = _one_array(values).cast(micro, safe=False).to_numpy(zero_copy_only=False)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        values = values.astype("datetime64[us]")
        return np.where(np.isnat(values), np.nan, values.astype(np.int64) / 1e6)
    return _column_floats(values, seconds_of, name, TIME_RULE, (_YEAR_1, LATEST_SECONDS))


def column_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Return numbers (R,), NaN for missing; see `number_of`."""
    return _column_floats(values, number_of, name, NUMBER_RULE, (-sys.float_info.max, math.inf))


def _column_floats(
    values: Any, convert: Callable[[Any], float], name: str, rule: str, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    """Return numbers (R,) within bounds, without Python for each where the container has them."""
    if is_arrow(values):
        values = _one_array(values)
        numbers = _arrow_numbers(values)
        values = values if numbers is None else numbers
    elif isinstance(values, list) and set(map(type, values)) <= {float, int, NoneType}:
        with suppress(OverflowError):  # of a whole number that no float holds
            values = np.array(values, dtype=np.float64)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf":
        floats_R = values.astype(np.float64)
        if (wrong_R := (floats_R < bounds[0]) | (floats_R >= bounds[1])).any():
            row = int(np.argmax(wrong_R))
            raise WrongValueError(name, row, float(floats_R[row]), rule=rule)
        return floats_R
    codes_R, floats_V = _converted(values, convert, name, rule)
    return np.array(floats_V, dtype=np.float64)[codes_R]


def _converted(
    values: Any, convert: Callable[[Any], Any], name: str, rule: str
) -> tuple[NDArray[np.int64], list[Any]]:
    """Return codes (R,), -1 for null, into the converted distinct values, the last of null."""
    if is_arrow(values):
        codes_R, distinct = _arrow_distinct(_one_array(values), name, rule)
    else:
        if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
            values = values.astype(f"{values.dtype.kind}8[us]")
        is_short = isinstance(values, np.ndarray) and values.dtype in (np.float16, np.float32)
        is_array = isinstance(values, np.ndarray) and not is_short
        rows = values.tolist() if is_array else list(values)
        # To Python True and 1 are the same key.
        mixed = len(set(map(type, rows)) - {NoneType}) > 1
        keys = list(zip(map(type, rows), rows, strict=True)) if mixed else rows
        try:
            codes_of = dict(zip(dict.fromkeys(keys), range(len(keys)), strict=False))
            codes_R = np.fromiter(map(codes_of.__getitem__, keys), np.int64, len(keys))
        except TypeError:  # a value without a hash, such as a list
            _each(rows, convert, name, rule)
            raise
        distinct = [key[1] for key in codes_of] if mixed else list(codes_of)
    return codes_R, [*_each(distinct, convert, name, rule, codes_R), convert(None)]


def _each(
    values: Sequence[Any], convert: Callable[[Any], Any], name: str, rule: str, codes_R: Any = None
) -> list[Any]:
    """Convert values; codes say in which row of the column each of them is."""
    converted: list[Any] = []
    try:
        converted.extend(map(convert, values))
    except (TypeError, ValueError, ArithmeticError):
        index = len(converted)
        row = index if codes_R is None else int(np.argmax(codes_R == index))
        raise WrongValueError(name, row, values[index], rule=rule) from None
    return converted


def is_arrow(values: object) -> bool:
    """Tell whether the values are an Arrow array, in one chunk or several."""
    return pa is not None and isinstance(values, pa.Array | pa.ChunkedArray)


def refuse_periods(schema: Any) -> None:
    """Refuse pandas' periods, whose Arrow columns hold bare numbers."""
    for field in schema:
        if hasattr(field.type, "freq") or b"pandas.period" in (field.metadata or {}).values():
            remedy = "convert it with .astype(str) or .dt.to_timestamp()"
            raise ValueError(f"column {field.name!r} must not hold pandas periods; {remedy}")


def _one_array(values: Any) -> Any:
    """Return the column as one Arrow array of its storage type."""
    if isinstance(values, pa.ChunkedArray):
        if values.nbytes >= 2**31 and pa.types.is_string(values.type):
            values = values.cast(pa.large_string())
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        return values.storage
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _refused(array: Any, name: str, rule: str) -> WrongValueError:
    """Return the error of an Arrow array none of whose values can be right."""
    row = int(np.argmax(array.is_valid().to_numpy(zero_copy_only=False)))
    return WrongValueError(name, row, array[row].as_py(), rule=rule)


def _arrow_distinct(array: Any, name: str, rule: str) -> tuple[NDArray[np.int64], list[Any]]:
    if array.null_count == len(array):
        return np.full(len(array), -1), []
    if pa.types.is_nested(array.type):
        raise _refused(array, name, rule)
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    distinct, codes = encoded.dictionary, encoded.indices
    if pa.types.is_timestamp(distinct.type):
        distinct = distinct.cast(pa.timestamp("us", distinct.type.tz), safe=False)
    codes = codes.fill_null(-1) if codes.null_count else codes
    rows = [*distinct.to_numpy()] if pa.types.is_floating(distinct.type) else distinct.to_pylist()
    return codes.to_numpy(zero_copy_only=False).astype(np.int64), rows


def _arrow_numbers(array: Any) -> NDArray[np.float64] | None:
    """Return numbers (R,), NaN for null, or None where the type is no number."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kinds = ("is_integer", "is_floating", "is_decimal")
    if not any(getattr(pa.types, kind)(array.type) for kind in kinds):
        return None
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _lists(
    values: Any, list_of: Callable[[Any], Any], name: str, rule: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Any]]:
    """Return codes (R,) into V lists, their lengths, -1 for missing, and what is in them."""
    array: Any = _one_array(values) if is_arrow(values) else None
    kinds = ("is_list", "is_large_list", "is_fixed_size_list")
    if array is not None and any(getattr(pa.types, kind)(array.type) for kind in kinds):
        lengths_R = array.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
        return np.arange(len(array)), lengths_R.astype(np.int64), [_one_array(array.flatten())]
    if array is not None or set(map(type, values)) <= {str, NoneType}:
        codes_R, lists = _converted(values, list_of, name, rule)
    else:
        codes_R, lists = np.arange(len(values)), _each(list(values), list_of, name, rule)
    lengths_V = np.array([-1 if one is None else len(one) for one in lists], dtype=np.int64)
    return codes_R, lengths_V, [one for one in lists if one is not None]


class TextTable(Sequence[str]):
    """Texts packed as safetensors hold them: UTF-8 bytes end to end (Z,), offsets (N + 1,)."""

    def __init__(self, packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        fits = packed.dtype == np.uint8 and offsets.dtype == np.int64 and len(offsets) > 0
        fits = fits and packed.ndim == offsets.ndim == 1 and offsets[0] == 0
        if not fits or offsets[-1] != len(packed) or (offsets[1:] < offsets[:-1]).any():
            rule = f"its offsets must rise from 0 to its number of bytes, {packed.size}"
            raise ValueError(f"a table of texts is damaged: {rule}; {_AGAIN}")
        str(packed.data, "utf-8", "surrogatepass")
        if (packed[offsets[offsets < len(packed)]] & 0xC0 == 0x80).any():
            raise ValueError("a table of texts is damaged: a text begins inside a character")
        self.packed, self.offsets = packed, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        rows = np.array(range(len(self))[index], dtype=np.int64)
        return self.take(rows) if isinstance(index, slice) else self.take(rows[None])[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 4096):
            yield from self.take(np.arange(first, min(first + 4096, len(self))))

    def take(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts of some rows."""
        bounds = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        blob = self.packed.data
        return [str(blob[start:end], "utf-8", "surrogatepass") for start, end in bounds]


def text_table(texts: Sequence[str]) -> TextTable:
    """Return texts as a table; a table is returned as it is."""
    if isinstance(texts, TextTable):
        return texts
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in encoded])]).astype(np.int64)
    return TextTable(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)


class ColumnEncoder(ABC):
    """A fitted column: R raw values in, (R, `column.width`) out. The name is for errors."""

    parts: ClassVar[Mapping[str, type]] = {}

    def __init__(self, column: Column, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.column, self.name, self.arrays = column, name, arrays
        found = {part: array.dtype.type for part, array in arrays.items()}
        if found != self.parts or not self._fits():
            raise ValueError(f"{name}: its saved arrays are damaged or of another column; {_AGAIN}")

    @abstractmethod
    def encode(self, values: Any) -> NDArray[Any]: ...

    @abstractmethod
    def _fits(self) -> bool: ...


class NumericEncoder(ColumnEncoder):
    """One scaled number a row; NaN is missing.

    The table is a line, `(x - mean) * slope`, or (2, T) numbers and their normal scores, between
    which it is interpolated; beyond them it is constant (`quantile`).
    """

    parts: ClassVar = {"table": np.float64}

    def _fits(self) -> bool:
        self.table = table = self.arrays["table"]
        is_table = table.ndim == 2 and len(table) == 2 and table.size > 0
        rises = is_table and bool((table[:, 1:] >= table[:, :-1]).all())
        return (rises or table.shape == (2,)) and bool(np.isfinite(table).all())

    def encode(self, values: Any) -> NDArray[np.float32]:
        numbers_R = column_numbers(values, self.name)
        with np.errstate(over="ignore"):
            scaled_R = self.scaled(numbers_R).astype(np.float32)
        if (wrong_R := np.isinf(scaled_R)).any():
            value, rule = float(numbers_R[wrong_R][0]), "must fit in 32 bits once scaled"
            raise WrongValueError(self.name, int(np.argmax(wrong_R)), value, rule=rule)
        return scaled_R[:, None]

    def scaled(self, numbers_R: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale numbers (R,) in float64."""
        if self.table.ndim == 1:
            mean, slope = self.table
            return (numbers_R - mean) * slope
        return np.interp(numbers_R, self.table[0], self.table[1])


class CategoryEncoder(ColumnEncoder):
    """One id a row of a `categorical` column, or the ids of a set's members.

    Ids 0, 1 and 2 are padding, missing and unseen; then come the known texts, the most frequent
    first; then the hash buckets, if any, that rare and unseen texts share. A set's ids ascend, each
    once, the unseen id last, then padding; what has no slot is left out. A missing set is
    `[MISSING_ID]`, an empty one padding alone.
    """

    parts: ClassVar = {"bytes": np.uint8, "offsets": np.int64}

    def _fits(self) -> bool:
        self.texts = TextTable(self.arrays["bytes"], self.arrays["offsets"])
        self.first_bucket = N_SPECIAL_IDS + len(self.texts)
        size = self.first_bucket + self.column.hash_buckets
        return size == self.column.vocabulary_size and self.column.width > 0

    @cached_property
    def _id_of(self) -> dict[str | None, int]:
        known = {text: N_SPECIAL_IDS + i for i, text in enumerate(self.texts)}
        # Where a file's NA was no code it was missing; earlier versions kept "8.50" as it is.
        ids = {"NA": MISSING_ID} | {text_of(text): known[text] for text in known} | known
        ids |= {None: MISSING_ID}
        return {word: ids[truth] for word, truth in TRUTHS.items() if truth in ids} | ids

    def encode(self, values: Any) -> NDArray[np.int64]:
        return self.ids(column_members(values, self.column, self.name))

    def _text_ids(self, texts: list[str | None]) -> NDArray[np.int64]:
        ids = np.fromiter(map(self._id_of.get, texts, repeat(UNSEEN_ID)), np.int64, len(texts))
        if self.column.hash_buckets:
            for index in np.flatnonzero(ids == UNSEEN_ID).tolist():
                hashed = stable_hash(str(texts[index]))
                ids[index] = self.first_bucket + hashed % self.column.hash_buckets
        return ids

    def ids(self, members: Members) -> NDArray[np.int64]:
        """Return the ids (R, M) of what `column_members` returns."""
        codes_R, lengths_V, codes_F, texts = members
        ids_F = self._text_ids(texts)[codes_F]
        if self.column.kind == "categorical":
            return ids_F[codes_R, None]
        last = self.column.vocabulary_size
        ids_F[ids_F == UNSEEN_ID] = last
        keys_F = np.repeat(np.arange(len(lengths_V)) * (last + 1), np.maximum(lengths_V, 0)) + ids_F
        keys_F = np.unique(keys_F[ids_F != MISSING_ID])  # a member without a text is none
        rows_F, ids_F = np.divmod(keys_F, last + 1)
        ids_F[ids_F == last] = UNSEEN_ID
        first_V = np.searchsorted(rows_F, np.arange(len(lengths_V)))
        slots_F = np.arange(len(rows_F)) - first_V[rows_F]
        kept_F = slots_F < self.column.max_length
        ids_VM = np.full((len(lengths_V), self.column.max_length), PADDING_ID, dtype=np.int64)
        ids_VM[lengths_V < 0, 0] = MISSING_ID
        ids_VM[rows_F[kept_F], slots_F[kept_F]] = ids_F[kept_F]
        return ids_VM[codes_R]


def stable_hash(text: str) -> int:
    """Return 64 bits of a text, the same in every process and on every machine (BLAKE2b)."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def column_members(values: Any, column: Column, name: str) -> Members:
    """Return codes (R,) into V sets, their lengths (-1: missing), codes (F,) into texts, texts."""
    if column.kind == "categorical":
        codes_R, texts = _converted(values, text_of, name, TEXT_RULE)
        return codes_R, np.ones(len(texts), np.int64), np.arange(len(texts)), texts
    separator, rule = column.separator, "must be a list of texts"
    rule += f", or one text with {separator!r} between its members" if separator else _SPLIT
    split = partial(_set_of, separator=separator)
    codes_R, lengths_V, lists = _lists(values, split, name, rule)
    is_array = len(lists) == 1 and is_arrow(lists[0])
    members = lists[0] if is_array else list(chain.from_iterable(lists))
    try:
        return codes_R, lengths_V, *column_texts(members, name)
    except WrongValueError as error:
        code = np.searchsorted(np.cumsum(np.maximum(lengths_V, 0)), error.row, side="right")
        row = int(np.argmax(codes_R == code))
        raise WrongValueError(name, row, error.value, rule=f"a member {error.rule}") from None


def _set_of(value: Any, separator: str) -> Any:
    """Return the members of one set, None of a missing one; TypeError of what is no set."""
    if is_missing(value):
        return None
    if isinstance(value, str) and re.fullmatch(LIST, value.strip()):
        bare = re.sub(BRACKETS, "", value.strip())
        return re.split(BETWEEN, bare) if bare else []
    if isinstance(value, str) and separator:
        return value.split(separator)
    if isinstance(value, list | tuple | set | frozenset) or np.ndim(value) == 1:
        return list(value)
    raise TypeError(f"{type(value).__name__} is no set")


class TimestampEncoder(ColumnEncoder):
    """The standardised time, then sine and cosine of the share of the UTC day, week, year gone."""

    parts: ClassVar = {"mean_and_slope": np.float64}

    def _fits(self) -> bool:
        self.line = line = self.arrays["mean_and_slope"]
        is_line = line.shape == (2,) and bool(np.isfinite(line).all())
        return is_line and self.column.dimension == TIMESTAMP_DIMENSION

    def encode(self, values: Any) -> NDArray[np.float32]:
        seconds_R = column_seconds(values, self.name)
        days_R = np.nan_to_num(seconds_R) / 86_400
        whole_R = np.floor(days_R).astype(np.int64)
        years_R = whole_R.view("datetime64[D]").astype("datetime64[Y]")
        start_R, end_R = ((years_R + n).astype("datetime64[D]").astype(np.int64) for n in (0, 1))
        week_R = np.mod(days_R + 3, 7) / 7  # 1970 began on a Thursday
        phases = (days_R - whole_R, week_R, (days_R - start_R) / (end_R - start_R))
        waves = [wave(2 * np.pi * phase_R) for phase_R in phases for wave in (np.sin, np.cos)]
        features = np.stack([(seconds_R - self.line[0]) * self.line[1], *waves], 1).astype("f4")
        features[np.isnan(seconds_R)] = np.nan
        return features


class VectorEncoder(ColumnEncoder):
    """W numbers a row as they are, all NaN where the vector is missing."""

    def _fits(self) -> bool:
        return self.column.dimension > 0

    def encode(self, values: Any) -> NDArray[np.float32]:
        flat, lengths_R = column_vectors(values, self.name)
        width = self.column.dimension
        wrong_R = (lengths_R >= 0) & (lengths_R != width)
        vectors_RW = np.full((len(lengths_R), width), np.nan, dtype=np.float32)
        if not wrong_R.any():
            with np.errstate(over="ignore"):
                vectors_RW[lengths_R >= 0] = flat.reshape(-1, width)
            wrong_R = ~np.isnan(vectors_RW).all(axis=1) & ~np.isfinite(vectors_RW).all(axis=1)
        if wrong_R.any():
            row = int(np.argmax(wrong_R))
            value = values[row].as_py() if is_arrow(values) else values[row]
            rule = f"must be a vector of {width} finite numbers"
            raise WrongValueError(self.name, row, value, rule=rule)
        return vectors_RW


def column_vectors(values: Any, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the numbers of all vectors end to end and the length of each (R,), -1 for missing."""
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf":
        return values.reshape(-1), np.full(len(values), values.shape[1])
    rule = "must be a list of numbers"
    codes_R, lengths_V, lists = _lists(values, _vector_of, name, rule)
    if lists and is_arrow(lists[0]):
        numbers = _arrow_numbers(lists[0])
        if numbers is None and len(lists[0]):
            raise _refused(_one_array(values), name, rule)
        lists = [] if numbers is None else [numbers]
    return np.concatenate(lists) if lists else np.empty(0), lengths_V[codes_R]


def _vector_of(value: Any) -> NDArray[Any] | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        value = list(map(float, re.split(r"[\s,;]+", value.strip("[]() \t"))))
    vector = np.asarray(value)
    if vector.ndim != 1 or vector.dtype.kind not in "biuf":
        raise TypeError("no vector")
    return vector


ENCODERS: Mapping[str, type[ColumnEncoder]] = {
    "numeric": NumericEncoder,
    "categorical": CategoryEncoder,
    "categories": CategoryEncoder,
    "timestamp": TimestampEncoder,
    "vector": VectorEncoder,
}
