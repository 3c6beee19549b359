"""The users a recommender knows by key: their raw records and histories.

They stay on the machine that trained (`local/` in a checkpoint) and are never pushed.
"""

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ftmamba.checks import DamagedFileError, check_file, damaged, read_tensors
from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions, ItemsByUser
from modeling_ftmamba.configuration_ftmamba import near
from modeling_ftmamba.encoders import column_texts, text_of
from modeling_ftmamba.processing_ftmamba import Event

USERS_FILE = "users.parquet"
SEEN_FILE = "seen.safetensors"
SEEN_VERSION = 1
CONTEXT_VERSION = 2
"""Of a file with columns of context, which a reader of version 1 would leave out unnoticed."""

_CONTEXT = "context/"
_MOST_TO_SUGGEST_FROM = 50_000

_PAGES = {0: (5, 2), 2: (7, 2), 3: (8, 4)}
"""Kinds of Parquet pages: in their headers the field of the facts, and there that of the encoding.
0 is of data, 2 a dictionary, 3 of data in version 2."""
_ENCODINGS = (0, 2, 3, 4, 8)
"""Plain, dictionaries and run lengths; of the others, some repeat parts of earlier values."""
_WIDEST_VALUE, _BYTES_OF_VALUE = 32, 16
_MOST_TIMES, _LEAST_BYTES = 64, 2**26
"""Users are decoded to so many times the bytes of their files, or to the latter if that is more."""


@dataclass(frozen=True)
class KnownUsers:
    """Raw records of users and their histories; row i is the user with the dense id i.

    Attributes:
        key: the name of the key's column in `records`.
        records: one row a user, as in the raw table.
        seen: the items of each user's history, oldest first.
        times: UTC seconds (R,) of these R events, or None.
        weights: (R,) of the events, or None.
        context: further columns (R,) of the events by name, NaN where a number is missing.
    """

    key: str
    records: pa.Table
    seen: ItemsByUser
    times: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    context: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.key not in self.records.column_names:
            raise ValueError(
                f"the table of known users has no key column {self.key!r}; "
                f"it has: {', '.join(self.records.column_names)}"
            )
        starts, item_ids = self.seen.starts, self.seen.item_ids
        fits = starts.ndim == item_ids.ndim == 1 and len(starts) == len(self) + 1
        if not fits or starts[0] != 0 or starts[-1] != len(item_ids) or (np.diff(starts) < 0).any():
            raise ValueError(
                f"{len(self)} known users do not fit the {item_ids.shape} seen items of "
                f"{starts.shape} starts; both files must be of one checkpoint"
            )
        for values in (self.times, self.weights, *self.context.values()):
            if values is not None and values.shape != item_ids.shape:
                raise ValueError(
                    f"{len(item_ids)} seen items have {values.shape} times, weights or numbers of "
                    "a context; copy the checkpoint again"
                )

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The users' keys as text."""
        codes, texts = column_texts(self.records.column(self.key), "a user's key")
        return tuple(texts[code] or "" for code in codes)

    @cached_property
    def _row_of_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def row(self, user_key: object) -> int:
        """Return the row of a user, by a key of any type (`text_of`).

        Raises:
            ValueError: no user has the key; the near one is suggested.
        """
        try:
            row = self._row_of_key.get(text_of(user_key) or "")
        except (TypeError, ValueError, ArithmeticError):
            row = None
        if row is None:
            guess = near(user_key, self.keys) if len(self) <= _MOST_TO_SUGGEST_FROM else ""
            raise ValueError(
                f"no user {user_key!r} among the {len(self)} known users{guess}; give "
                "record={...} for a new user"
            )
        return row

    def record(self, row: int) -> dict[str, Any]:
        """Return one user's raw record."""
        return records_of(self.records.slice(row, 1))[0]

    def events(self, row: int) -> list[Event]:
        """Return a user's history, oldest first."""
        index = slice(self.seen.starts[row], self.seen.starts[row + 1])
        items = self.seen.item_ids[index].tolist()
        unknown = [math.nan] * len(items)
        times = unknown if self.times is None else self.times[index].tolist()
        weights = unknown if self.weights is None else self.weights[index].tolist()
        columns = {name: values[index].tolist() for name, values in self.context.items()}
        return [
            Event(*one, {name: values[step] for name, values in columns.items()})
            for step, one in enumerate(zip(items, times, weights, strict=True))
        ]

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        pq.write_table(self.records, folder / USERS_FILE)
        tensors: dict[str, NDArray[Any]] = {
            "starts": self.seen.starts,
            "item_ids": self.seen.item_ids,
        }
        for name, values in (("times", self.times), ("weights", self.weights)):
            if values is not None:
                tensors[name] = values
        tensors |= {f"{_CONTEXT}{name}": values for name, values in self.context.items()}
        metadata = {"format_version": str(CONTEXT_VERSION if self.context else SEEN_VERSION)}
        save_file(tensors, folder / SEEN_FILE, metadata)


def records_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table, a number of 32 bits as it is written: 0.1, not 0.10000000149."""
    for index, kind in enumerate(table.schema.types):
        if kind == pa.float32():
            values = table.column(index).cast(pa.string()).cast(pa.float64())
            table = table.set_column(index, table.column_names[index], values)
    return table.to_pylist()  # type: ignore[no-any-return]


def known_users(
    users: pa.Table, interactions: Interactions, *, key: str, columns: Iterable[str] = ()
) -> KnownUsers:
    """Gather each user's record and history.

    Args:
        users: the raw table; row i is the user with the dense id i.
        interactions: whose items count as seen.
        key: the key's column.
        columns: the other columns to keep; no more than the extractor reads is kept.
    """
    names = [key, *(name for name in columns if name != key and name in users.column_names)]
    histories = histories_of(interactions)
    return KnownUsers(
        key,
        users.select(names),
        histories.items,
        histories.events.times,
        histories.events.weights,
        context=histories.events.context,
    )


def load_known_users(folder: Path, *, key: str, n_items: int) -> KnownUsers:
    """Read both files of a folder.

    Args:
        folder: of the checkpoint.
        key: the key's column.
        n_items: of the catalogue.

    Raises:
        ValueError: a file is missing, truncated, of another version or another catalogue.
    """
    path = folder / SEEN_FILE
    try:
        metadata, tensors = read_tensors(path, dtypes=frozenset(["I64", "F32"]))
        version = metadata.get("format_version")
        if version not in (str(SEEN_VERSION), str(CONTEXT_VERSION)):
            known = f"this ftmamba reads {SEEN_VERSION} and {CONTEXT_VERSION}"
            raise damaged(path, f"has format {version!s:.20}, {known}", "train again")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() != (name == "weights" or name.startswith(_CONTEXT)):
                raise damaged(path, f"holds {name!r:.80} as {tensor.dtype}")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        starts, item_ids = arrays["starts"], arrays["item_ids"]
        if item_ids.min(initial=0) < 0 or item_ids.max(initial=0) >= n_items:
            raise damaged(path, f"holds items that the catalogue of {n_items} has not")
        records = _read_records(folder / USERS_FILE, len(starts) - 1, path.stat().st_size)
        return KnownUsers(
            key,
            records,
            ItemsByUser(starts, item_ids),
            arrays.get("times"),
            arrays.get("weights"),
            {
                name.removeprefix(_CONTEXT): values
                for name, values in arrays.items()
                if name.startswith(_CONTEXT)
            },
        )
    except (
        pa.ArrowException, OSError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise DamagedFileError(
            f"the known users in {str(folder)!r} are incomplete or damaged ({error!s:.300}); copy "
            "the checkpoint again, or delete that folder to go on without them"
        ) from None


def _read_records(path: Path, n_rows: int, n_bytes_beside: int) -> pa.Table:
    """Read the users' records, once it is known how much memory they take."""
    check_file(path)
    most = max(_LEAST_BYTES, _MOST_TIMES * (path.stat().st_size + n_bytes_beside))
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if file.metadata.num_rows != n_rows:
            raise damaged(path, f"has {file.metadata.num_rows} rows for {n_rows} users")
        n_bytes, columns = _decoded_bytes(path, file.metadata), range(file.metadata.num_columns)
    texts = [file.schema.column(c).path for c in columns if _is_text(file.schema.column(c))]
    if n_bytes <= most:
        # A text that many rows share is read once, before it is known how long they are together.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            records = file.read()
        n_bytes += sum(_shared_bytes(one) for column in records.columns for one in column.chunks)
    if n_bytes > most:
        raise damaged(path, f"decodes to {n_bytes} bytes, at most {most} are read")
    return records.cast(schema)


def _is_text(column: Any) -> bool:
    return str(column.physical_type) == "BYTE_ARRAY"


def _shared_bytes(values: pa.Array) -> int:
    """Return how long the texts of an array are together that are kept once in its dictionaries."""
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)
        return pc.sum(lengths).as_py() or 0
    if pa.types.is_nested(values.type):
        parts = values.flatten()
        return sum(map(_shared_bytes, parts if isinstance(parts, list) else [parts]))
    return 0


def _decoded_bytes(path: Path, metadata: pq.FileMetaData) -> int:
    """Return how much memory a Parquet file takes while a repeated text is kept once.

    It is read from the headers of its pages, which decoding obeys. The decoder does not check the
    sizes that the file's own metadata state.

    Raises:
        ValueError: a page is of a kind that a checkpoint has not, or contradicts the metadata.
        IndexError: it is truncated.
    """
    n_bytes = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(index)
                offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
                at = min(offset for offset in offsets if offset)
                end, left = at + chunk.total_compressed_size, chunk.num_values
                is_wide = metadata.schema.column(index).length > _WIDEST_VALUE
                while left > 0 and not is_wide:
                    header, at = _thrift(content, at)
                    facts, encoding = _PAGES[header[1]]
                    n_values, at = header[facts][1], at + header[3]
                    is_known = header[facts][encoding] in _ENCODINGS
                    if not is_known or at > end or min(n_values, header[2], header[3]) < 0:
                        break
                    is_data = header[1] != 2
                    left -= n_values if is_data else 0
                    n_bytes += header[2] + n_values * _BYTES_OF_VALUE * is_data
                if left:
                    raise damaged(path, f"has wrong pages in {chunk.path_in_schema!r:.80}")
    return n_bytes


def _thrift(content: mmap.mmap, at: int) -> tuple[dict[int, Any], int]:
    """Read a structure in Thrift's compact form: its numbers and structures, and where it ends."""

    def number() -> int:
        nonlocal at
        bits = shift = 0
        while True:
            byte, at = content[at], at + 1
            bits |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return bits
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    fields: dict[int, Any] = {}
    name = 0
    while head := content[at]:
        at, kind = at + 1, head & 15
        bits = number() if not head >> 4 else 0
        name = name + (head >> 4) if head >> 4 else (bits >> 1) ^ -(bits & 1)
        if kind in (1, 2):
            fields[name] = kind == 1
        elif kind in (5, 6):
            bits = number()
            fields[name] = (bits >> 1) ^ -(bits & 1)
        elif kind == 8:
            n_bytes = number()
            at += n_bytes
        elif kind == 12:
            fields[name], at = _thrift(content, at)
        else:
            raise ValueError(f"a field of the kind {kind}")
    return fields, at + 1
