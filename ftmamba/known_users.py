"""The users a recommender knows by key: their raw records and histories.

They stay on the machine that trained (`local/` in a checkpoint) and are never pushed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ftmamba.checks import DamagedFileError, check_file, damaged, read_tensors
from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions, ItemsByUser
from modeling_ftmamba.configuration_ftmamba import near
from modeling_ftmamba.encoders import column_texts
from modeling_ftmamba.processing_ftmamba import Event

USERS_FILE = "users.parquet"
SEEN_FILE = "seen.safetensors"
SEEN_VERSION = 1
CONTEXT_VERSION = 2
"""Of a file with columns of context, which a reader of version 1 would leave out unnoticed."""

_CONTEXT = "context/"
_MOST_TO_SUGGEST_FROM = 50_000


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
            guess = near(user_key, self.keys) if len(self) <= _MOST_TO_SUGGEST_FROM else ""
            raise ValueError(
                f"no user {user_key!r} among the {len(self)} known users{guess}; give "
                "record={...} for a new user"
            )
        return row

    def record(self, row: int) -> dict[str, Any]:
        """Return one user's raw record."""
        record: dict[str, Any] = self.records.slice(row, 1).to_pylist()[0]
        return record

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
        check_file(folder / USERS_FILE)
        with pq.ParquetFile(folder / USERS_FILE) as file:
            # Before memory is taken for the rows that it claims.
            if file.metadata.num_rows != len(starts) - 1:
                problem = f"has {file.metadata.num_rows} rows for {len(starts) - 1} users"
                raise damaged(folder / USERS_FILE, problem)
            records = file.read()
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
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedFileError(
            f"the known users in {str(folder)!r} are incomplete or damaged ({error!s:.300}); copy "
            "the checkpoint again, or delete that folder to go on without them"
        ) from None
