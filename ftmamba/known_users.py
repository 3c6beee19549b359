"""The users a recommender knows by key: raw records and what each has already taken.

They stay on the machine that trained (`local/` in a checkpoint) and are never pushed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions, ItemsByUser
from ftmamba.data.readers import key_texts
from modeling_ftmamba.catalogue_file import near_key
from modeling_ftmamba.checked_files import DamagedFileError, check_file, damaged, read_tensors
from modeling_ftmamba.history_records import Event

USERS_FILE = "users.parquet"
SEEN_FILE = "seen.safetensors"
SEEN_VERSION = 1
CONTEXT_VERSION = 2
"""Of a file with columns of context, which a reader of version 1 would leave out unnoticed."""

_CONTEXT = "context/"


@dataclass(frozen=True)
class KnownUsers:
    """Raw records of users, and the items each has seen; row i is the user with the dense id i.

    Attributes:
        key: the name of the key's column in `records`.
        records: one row a user, as in the raw table.
        taken: the ids of each user's items, oldest first.
        times: UTC seconds (R,) of what was taken, or None.
        weights: (R,) of what was taken, or None.
        context: further columns (R,) of what was taken by name, NaN where a number is missing.
    """

    key: str
    records: pa.Table
    taken: ItemsByUser
    times: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    context: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.key not in self.records.column_names:
            raise ValueError(
                f"the table of known users has no key column {self.key!r}; "
                f"it has: {', '.join(self.records.column_names)}"
            )
        starts, item_ids = self.taken.starts, self.taken.item_ids
        if starts.ndim != 1 or item_ids.ndim != 1:
            raise ValueError("the items that the known users have seen must be lists of numbers")
        if len(starts) != len(self) + 1 or starts[0] != 0 or starts[-1] != len(item_ids):
            raise ValueError(
                f"{len(self)} known users do not fit the {len(item_ids)} seen items of "
                f"{len(starts) - 1}; the two files of one checkpoint belong together"
            )
        if (starts[1:] < starts[:-1]).any():
            raise ValueError("the items that the known users have seen overlap; copy them again")
        for values in (self.times, self.weights, *self.context.values()):
            if values is not None and values.shape != item_ids.shape:
                raise ValueError(
                    f"{len(item_ids)} seen items have {values.size} times, weights or numbers of "
                    "a context; copy them again"
                )

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The users' keys as text."""
        return tuple(key_texts(self.records.column(self.key)).to_pylist())

    @cached_property
    def _row_of_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def row(self, user_key: str) -> int:
        """Return the row of a user.

        Raises:
            ValueError: `user_key` is no text, or no user has it; the near one is suggested.
        """
        if not isinstance(user_key, str):
            raise ValueError(
                f"user_key must be text, got {user_key!r} ({type(user_key).__name__}); "
                f"write user_key={str(user_key)!r}"
            )
        row = self._row_of_key.get(user_key)
        if row is None:
            raise ValueError(
                f"no user {user_key!r} among the {len(self)} known users"
                f"{near_key(user_key, self.keys)}; give record={{...}} for somebody new"
            )
        return row

    def record(self, row: int) -> dict[str, Any]:
        """Return one user's raw record."""
        record: dict[str, Any] = self.records.slice(row, 1).to_pylist()[0]
        return record

    def seen(self, row: int) -> NDArray[np.int64]:
        """Return the ids of the items that one user has taken."""
        return self.taken.item_ids[self.taken.starts[row] : self.taken.starts[row + 1]]

    def events(self, row: int) -> list[Event]:
        """Return what one user has taken, as `HistoryReader.of_events` takes it."""
        place = slice(self.taken.starts[row], self.taken.starts[row + 1])
        items = self.taken.item_ids[place].tolist()
        unknown = [math.nan] * len(items)
        times = unknown if self.times is None else self.times[place].tolist()
        weights = unknown if self.weights is None else self.weights[place].tolist()
        columns = {name: values[place].tolist() for name, values in self.context.items()}
        return [
            Event(*one, {name: values[step] for name, values in columns.items()})
            for step, one in enumerate(zip(items, times, weights, strict=True))
        ]

    def taken_from(self, n_items: int) -> bool:
        """Whether all that was taken is among so many items."""
        item_ids = self.taken.item_ids
        return len(item_ids) == 0 or bool(item_ids.min() >= 0 and item_ids.max() < n_items)

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        pq.write_table(self.records, folder / USERS_FILE)
        tensors: dict[str, NDArray[Any]] = {
            "starts": self.taken.starts,
            "item_ids": self.taken.item_ids,
        }
        for name, values in (("times", self.times), ("weights", self.weights)):
            if values is not None:
                tensors[name] = values
        tensors |= {f"{_CONTEXT}{name}": values for name, values in self.context.items()}
        metadata = {"format_version": str(CONTEXT_VERSION if self.context else SEEN_VERSION)}
        save_file(tensors, folder / SEEN_FILE, metadata)


def known_users(
    users: pa.Table, interactions: Interactions, *, key: str, columns: Iterable[str] = ()
) -> KnownUsers:
    """Gather what a recommender needs to know of each user.

    Args:
        users: the raw table; row i is the user with the dense id i.
        interactions: what counts as seen.
        key: the key's column.
        columns: the other columns to keep; no more than the extractor reads is kept.
    """
    names = [key, *(name for name in columns if name != key and name in users.column_names)]
    histories = histories_of(interactions)
    return KnownUsers(
        key,
        users.select(names),
        histories.items,
        histories.times,
        histories.weights,
        context=histories.context,
    )


def load_known_users(folder: Path, *, key: str) -> KnownUsers:
    """Read both files of a folder.

    Raises:
        ValueError: a file is missing, truncated or of another version.
    """
    try:
        metadata, tensors = read_tensors(folder / SEEN_FILE, dtypes=frozenset(["I64", "F32"]))
        _check_types(folder / SEEN_FILE, tensors)
        starts, item_ids = (tensors[name].numpy() for name in ("starts", "item_ids"))
        records = _read_records(folder / USERS_FILE, len(starts) - 1)
    except (DamagedFileError, pa.ArrowException, UnicodeDecodeError, OSError, KeyError) as error:
        raise ValueError(
            f"the known users in {str(folder)!r} are incomplete or truncated ({error!s:.300}); "
            "copy the checkpoint again, or delete that folder to go on without them"
        ) from None
    version = metadata.get("format_version")
    if version not in (str(SEEN_VERSION), str(CONTEXT_VERSION)):
        raise ValueError(
            f"{str(folder / SEEN_FILE)!r} has format {version!s:.20}, this ftmamba reads "
            f"{SEEN_VERSION} and {CONTEXT_VERSION}; install the ftmamba that wrote it, or train "
            "again"
        )
    times, weights = (
        None if name not in tensors else tensors[name].numpy() for name in ("times", "weights")
    )
    context = {
        name.removeprefix(_CONTEXT): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith(_CONTEXT)
    }
    return KnownUsers(key, records, ItemsByUser(starts, item_ids), times, weights, context)


def _check_types(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that everything but weights and context is whole numbers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != (name == "weights" or name.startswith(_CONTEXT)):
            raise damaged(path, f"holds {name!r:.80} as {tensor.dtype}")


def _read_records(path: Path, n_users: int) -> pa.Table:
    """Read the users' table; the rows it claims are counted before memory is taken for them."""
    check_file(path)
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != n_users:
            raise DamagedFileError(
                f"{str(path)!r} has {file.metadata.num_rows} rows for {n_users} known users"
            )
        return file.read()


def rows_of_keys(users: KnownUsers, user_keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows of several users; an unknown key raises as `KnownUsers.row` does."""
    return np.asarray([users.row(key) for key in user_keys], dtype=np.int64)
