"""Tables tokenised once: users, items and training interactions as tensors ready to gather.

Shapes: R training interactions, U users, I items, W popularity columns, B rows of a batch.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.arrow_files import (
    cache_folder,
    content_hash,
    place_folder,
    read_tensors,
    write_arrays,
)
from ftmamba.data.fitting import fit_extractor
from ftmamba.data.histories import Histories, histories_of, with_event_scales
from ftmamba.data.interactions import Interactions
from ftmamba.data.popularity import PopularityHistory
from ftmamba.data.tables import Tables
from modeling_ftmamba.configuration_ftmamba import Column, columns_of_tensor, history_of
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

logger = logging.getLogger(__name__)

ENCODING_VERSION = 3
"""Raise it when the same tables are to be encoded otherwise: older caches are then left alone."""

CHECKSUMS_FILE = "checksums.json"

_ROWS_FOR_SCALING = 1_000_000
_SCALING_SEED = 0


@dataclass(frozen=True)
class EncodedData:
    """Everything training gathers its batches from.

    Attributes:
        extractor: fitted on the training rows.
        users: the encoded table of users, keys as in `configuration_ftmamba`, U rows each.
        items: the encoded table of items, I rows each; popularity slots hold NaN.
        interactions: the Arrow file of the training interactions: `user_ids`, `item_ids` and,
            where they have them, `times`.
        popularity_history: counts of the training interactions, or None without popularity columns.
        item_counts: int64 (I,), training interactions of each item.
        as_of: the time as of which the catalogue is embedded, or None without times.
        n_users: rows of the table of users.
        histories: the training interactions of each user in order, where the schema has a history.
    """

    extractor: FTMambaFeatureExtractor
    users: dict[str, Tensor]
    items: dict[str, Tensor]
    interactions: Path
    popularity_history: PopularityHistory | None
    item_counts: NDArray[np.int64]
    as_of: int | None
    n_users: int
    histories: Histories | None = None

    @property
    def n_items(self) -> int:
        """Rows of the table of items."""
        return len(self.item_counts)

    @property
    def history_column(self) -> Column | None:
        """The column of users' histories, where there is one."""
        return None if self.histories is None else history_of(self.extractor.columns("user"))

    @cached_property
    def popularity_columns(self) -> tuple[Column, ...]:
        """The items' columns of popularity."""
        return tuple(column for column in self.extractor.columns("item") if column.popularity_days)

    @cached_property
    def popularity_slots(self) -> tuple[int, ...]:
        """Where each column of popularity lies in `items["numeric"]`."""
        numeric = columns_of_tensor(self.extractor.columns("item"), "numeric")
        return tuple(slot for slot, column in enumerate(numeric) if column.popularity_days)

    def gather_users(self, user_ids: Tensor) -> dict[str, Tensor]:
        """Return the users' rows as the model's arguments, (B, ...)."""
        return _gathered(self.users, user_ids, "user_")

    def gather_items(self, item_ids: Tensor, popularity: Tensor | None = None) -> dict[str, Tensor]:
        """Return the items' rows as the model's arguments, (B, ...).

        Args:
            item_ids: rows of the table of items, (B,).
            popularity: scaled popularity of each row, (B, W), as of `popularity_at`; None leaves
                it missing.
        """
        gathered = _gathered(self.items, item_ids, "item_")
        if popularity is not None and self.popularity_slots:
            gathered["item_numeric"].numpy()[:, self.popularity_slots] = popularity.numpy()
        return gathered

    def catalogue(self, as_of: int | None = None) -> dict[str, Tensor]:
        """Return every item as the model's arguments, (I, ...), popularity as of a time.

        What does not change with the time shares its memory with `items`; do not write to it.

        Args:
            as_of: UTC seconds; interactions strictly before it count. None means `self.as_of`.
        """
        return self.catalogue_rows(as_of)(0, self.n_items)

    def catalogue_rows(self, as_of: int | None = None) -> Callable[[int, int], dict[str, Tensor]]:
        """Return what gives a stretch of `catalogue(as_of)`, without making the rest."""
        time = self.as_of if as_of is None else as_of

        def rows(start: int, stop: int) -> dict[str, Tensor]:
            items = {f"item_{name}": tensor[start:stop] for name, tensor in self.items.items()}
            if self.popularity_slots and time is not None:
                item_ids = np.arange(start, min(stop, self.n_items))
                numeric = items["item_numeric"].clone()
                numeric.numpy()[:, self.popularity_slots] = self.popularity_at(
                    item_ids, np.full(len(item_ids), time)
                )
                items["item_numeric"] = numeric
            return items

        return rows

    def popularity_at(
        self, item_ids: NDArray[np.int64], times: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the popularity (B, W) of items, each as of a time of its own, scaled as fitted."""
        if self.popularity_history is None:
            raise ValueError(
                "the items have no popularity columns; declare popularity_days in the schema"
            )
        days = [column.popularity_days for column in self.popularity_columns]
        raw_BW = self.popularity_history.columns(item_ids, times, days)
        for index, column in enumerate(self.popularity_columns):
            encoder = self.extractor.encoder("item", column.name)
            raw_BW[:, index] = encoder.encode(raw_BW[:, index])[:, 0]
        return raw_BW

    def training_pairs(self) -> tuple[Tensor, Tensor]:
        """Return user and item ids of all training interactions, (R,) each."""
        columns = read_tensors(self.interactions, ["user_ids", "item_ids"])
        return columns["user_ids"], columns["item_ids"]


def encode(
    tables: Tables,
    train: Interactions,
    *,
    as_of: int | None = None,
    cache_dir: str | Path | None = None,
    extractor: FTMambaFeatureExtractor | None = None,
) -> EncodedData:
    """Fit the feature extractor on the training rows and encode the tables, once.

    The result is kept in a folder named after a hash of the tables, the schema and the training
    interactions, and read from there the next time, once the checksums of its files agree.

    Args:
        tables: users, items and the schema; their own interactions are not looked at.
        train: the only interactions that fitting, counts and popularity may see.
        as_of: the time of the catalogue; None means the second after the last training time.
        cache_dir: where encoded tables are kept; `cache_folder()` if None.
        extractor: already fitted; None fits one.
    """
    if not len(train):
        raise ValueError("the training part has no interactions; change the split")
    has_popularity = bool(tables.schema.items.popularity_columns)
    popularity = PopularityHistory(train) if has_popularity else None
    fitted = "" if extractor is None else f"-{extractor.to_dict()['fingerprint']}"
    folder = cache_folder(cache_dir) / f"encoded-{_fingerprint(tables, train)}{fitted}"
    if folder.is_dir() and (damaged := _damaged_files(folder)):
        logger.warning("encoding the tables again: %s of %s is damaged", damaged, folder)
        shutil.rmtree(folder)
    if not folder.is_dir():
        place_folder(
            folder, lambda target: _encode_into(target, tables, train, popularity, extractor)
        )
    if as_of is None and train.times is not None:
        as_of = int(train.times.max()) + 1
    return EncodedData(
        extractor=FTMambaFeatureExtractor.from_pretrained(folder),
        users=read_tensors(folder / "users.arrow"),
        items=read_tensors(folder / "items.arrow"),
        interactions=folder / "interactions.arrow",
        popularity_history=popularity,
        item_counts=np.bincount(train.item_ids, minlength=train.n_items),
        as_of=as_of,
        n_users=train.n_users,
        histories=None if tables.schema.users.history_column is None else histories_of(train),
    )


def _encode_into(
    folder: Path,
    tables: Tables,
    train: Interactions,
    popularity: PopularityHistory | None,
    extractor: FTMambaFeatureExtractor | None,
) -> None:
    extractor = extractor or _fitted_extractor(tables, train, popularity)
    extractor.save_pretrained(folder)
    write_arrays(folder / "users.arrow", _arrays(extractor(users=tables.users), "user_"))
    write_arrays(folder / "items.arrow", _arrays(extractor(items=tables.items), "item_"))
    arrays = {"user_ids": train.user_ids, "item_ids": train.item_ids}
    if train.times is not None:
        arrays["times"] = train.times
    write_arrays(folder / "interactions.arrow", arrays)
    sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def _damaged_files(folder: Path) -> str:
    """Return the names of a cache's files that are not, bit for bit, those that were written."""
    try:
        sums = json.loads((folder / CHECKSUMS_FILE).read_bytes())
        return ", ".join(name for name in sums if _checksum(folder / name) != sums[name])
    except (OSError, ValueError, AttributeError, TypeError):
        return CHECKSUMS_FILE


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _fitted_extractor(
    tables: Tables, train: Interactions, popularity: PopularityHistory | None
) -> FTMambaFeatureExtractor:
    """Fit a feature extractor on the users, items and events that occur in training."""
    schema = tables.schema
    user_columns = with_event_scales(schema.users.columns, train)
    extractor = FTMambaFeatureExtractor(
        user_columns=[column.to_dict() for column in user_columns],
        item_columns=[column.to_dict() for column in schema.items.columns],
        user_key=schema.users.key,
        item_key=schema.items.key,
    )
    users = tables.users.take(pa.array(np.unique(train.user_ids)))
    seen_items = tables.items.take(pa.array(np.unique(train.item_ids)))
    items: dict[str, object] = {name: seen_items.column(name) for name in seen_items.column_names}
    if popularity is not None and train.times is not None:
        rows = np.arange(len(train))
        if len(train) > _ROWS_FOR_SCALING:
            # So many of them, evenly drawn, are all that a quantile needs.
            generator = np.random.default_rng(_SCALING_SEED)
            rows = np.sort(generator.choice(len(train), _ROWS_FOR_SCALING, replace=False))
        days = [column.popularity_days for column in schema.items.popularity_columns]
        raw_RW = popularity.columns(train.item_ids[rows], train.times[rows], days)
        for column, raw_R in zip(schema.items.popularity_columns, raw_RW.T, strict=True):
            items[column.name] = raw_R
    return fit_extractor(extractor, users, items)


def _fingerprint(tables: Tables, train: Interactions) -> str:
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps([ENCODING_VERSION, tables.schema.to_dict()]).encode())
    for table in (tables.users, tables.items):
        digest.update(content_hash(table))
    for array in (train.user_ids, train.item_ids, train.times):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    for name, values in sorted(train.context.items()):
        digest.update(json.dumps(name).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _arrays(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {
        name.removeprefix(prefix): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _gathered(tensors: Mapping[str, Tensor], rows: Tensor, prefix: str) -> dict[str, Tensor]:
    # NumPy copies rows as fast as torch, and in the calling thread alone.
    return {
        prefix + name: torch.from_numpy(np.take(tensor.numpy(), rows.numpy(), axis=0))
        for name, tensor in tensors.items()
    }
