"""The catalogue of a checkpoint: every item's key, title and embedding, in one safetensors file.

Shapes: I items, E embedding, S slots of an encoded record.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from .checked_files import damaged, parse_json, read_tensors, shown
from .configuration_ftmamba import TENSOR_OF_KIND, Column, columns_of_tensor, near
from .encoders import TextTable, text_table

CATALOGUE_NAME = "catalogue.safetensors"
CATALOGUE_VERSION = 1
LONGEST_KEY = 4096
"""Bytes."""

_TYPES = {
    "key_bytes": np.uint8,
    "key_offsets": np.int64,
    "title_bytes": np.uint8,
    "title_offsets": np.int64,
    "embeddings": np.float32,
}
_RECORDS = "records/"
_DTYPES = frozenset(["F32", "I32", "I64", "U8"])
_LATEST = 2**40
_MOST_KEYS_TO_SUGGEST_FROM = 50_000


class KeyIndex:
    """Finds the rows of millions of keys by a hash of their bytes, without an object for each.

    The hash is no secret, so a person may choose keys that share one; then a dict does it.

    Attributes:
        repeated: a key that occurs twice, None where there is none.

    Raises:
        ValueError: a key is longer than `LONGEST_KEY`.
    """

    def __init__(self, keys: TextTable) -> None:
        self._keys = keys
        lengths_N = np.diff(keys.offsets)
        if len(keys) and lengths_N.max() > LONGEST_KEY:
            row = int(lengths_N.argmax())
            raise ValueError(
                f"the key in row {row} has {lengths_N[row]} bytes, of {LONGEST_KEY} at most; give "
                "shorter keys"
            )
        hash_N = _hashes(keys)
        self._order_N = np.argsort(hash_N)
        self._sorted_N = hash_N[self._order_N]
        self._row_of: dict[str, int] | None = None
        self.repeated: str | None = None
        if (self._sorted_N[1:] == self._sorted_N[:-1]).any():
            self._row_of = {key: row for row, key in enumerate(keys)}
            self.repeated = next((k for row, k in enumerate(keys) if self._row_of[k] != row), None)

    def rows(self, keys: Iterable[str]) -> list[int | None]:
        """Return the row of each key, None where there is none."""
        if self._row_of is not None:
            return list(map(self._row_of.get, keys))
        asked = list(keys)
        if not len(self._keys):
            return [None] * len(asked)
        index = np.searchsorted(self._sorted_N, _hashes(text_table(asked)))
        found = self._order_N[np.minimum(index, len(self._keys) - 1)]
        pairs = zip(found.tolist(), self._keys.take(found), asked, strict=True)
        return [row if own == key else None for row, own, key in pairs]


def _hashes(keys: TextTable) -> NDArray[np.uint64]:
    """Return a hash of each key's bytes (N,), read eight at a time."""
    starts_N, lengths_N = keys.offsets[:-1], np.diff(keys.offsets)
    padded = np.concatenate([keys.packed, np.zeros(8, np.uint8)])
    # The eight bytes from each byte on, as one number.
    words = np.ndarray(len(keys.packed) + 1, np.dtype("<u8"), padded.data, strides=(1,))
    hash_N = lengths_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    longer = np.argsort(lengths_N, kind="stable")
    for start in range(0, int(lengths_N.max(initial=0)), 8):
        longer = longer[np.searchsorted(lengths_N[longer], start, side="right") :]
        absent = np.maximum(start + 8 - lengths_N[longer], 0).astype(np.uint64) * np.uint64(8)
        word = words[starts_N[longer] + start] << absent
        mixed = (hash_N[longer] ^ word) * np.uint64(0xD6E8FEB86659FD93)
        hash_N[longer] = mixed ^ (mixed >> np.uint64(32))
    return hash_N


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended; row i is the item with the dense id i.

    Attributes:
        keys: the item's key in the raw table, unique.
        titles: what to show a person; empty texts where the table has no title.
        embeddings: float32 (I, E), of the item tower.
        as_of: UTC seconds at which the items' popularity was counted, or None.
        fingerprint: of the weights that made the embeddings (`weights_fingerprint`).
        records: the encoded items that were embedded, (I, S) each, by the extractor's names
            (`item_numeric`, ...); empty where they are not kept. Explanations need them.
    """

    keys: Sequence[str]
    titles: Sequence[str]
    embeddings: NDArray[np.float32]
    as_of: int | None = None
    fingerprint: str = ""
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", text_table(self.keys))
        object.__setattr__(self, "titles", text_table(self.titles))
        n_items = len(self.keys)
        if self.embeddings.ndim != 2 or self.embeddings.dtype != np.float32:
            raise ValueError(
                f"a catalogue's embeddings must be float32 (items, width), got "
                f"{self.embeddings.dtype} {self.embeddings.shape}"
            )
        if not len(self.titles) == len(self.embeddings) == n_items:
            raise ValueError(
                f"a catalogue needs one title and one embedding an item, got {n_items} keys, "
                f"{len(self.titles)} titles and {len(self.embeddings)} embeddings"
            )
        if n_items == 0:
            raise ValueError("a catalogue needs at least one item, got none")
        if self._index.repeated is not None:
            raise ValueError(f"the item key {self._index.repeated!r} occurs twice in a catalogue")
        self._check_finite()
        for name, record_IS in self.records.items():
            if record_IS.ndim != 2 or len(record_IS) != n_items:
                raise ValueError(
                    f"a catalogue's records must have one row an item, got {name!r} of shape "
                    f"{record_IS.shape} for {n_items} items"
                )

    def _check_finite(self) -> None:
        # The sum of all is finite only if each is; it may overflow, then each is looked at.
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.embeddings.sum()
        if np.isfinite(total) or np.isfinite(self.embeddings).all():
            return
        row = int(np.flatnonzero(~np.isfinite(self.embeddings).all(1))[0])
        raise ValueError(
            f"the embedding of item {self.keys[row]!r} (row {row}) is not finite; "
            "the model has diverged or its input had NaN or Inf"
        )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(text_table(self.keys))

    def row(self, item_key: str) -> int:
        """Return the row of an item.

        Raises:
            ValueError: no item has that key; the near one is suggested.
        """
        row = self._index.rows([item_key])[0] if isinstance(item_key, str) else None
        if row is None:
            raise ValueError(
                f"no item {item_key!r} among the {len(self)} of the catalogue"
                f"{near_key(item_key, self.keys)}"
            )
        return row

    def rows_or_none(self, item_keys: Iterable[str]) -> list[int | None]:
        """Return the row of each key, None of one that the catalogue does not hold."""
        return self._index.rows(item_keys)

    def rows_of_known(self, item_keys: Iterable[str]) -> NDArray[np.int64]:
        """Return the rows of those keys that the catalogue holds."""
        rows = self._index.rows(key for key in item_keys if isinstance(key, str))
        return np.asarray([row for row in rows if row is not None], dtype=np.int64)

    def record(self, row: int) -> dict[str, Tensor]:
        """Return one encoded item as the model takes it, (1, S) each; empty if none is kept."""
        return {
            name: _as_encoded(torch.from_numpy(record_IS[row : row + 1]))
            for name, record_IS in self.records.items()
        }

    def save(self, path: Path) -> None:
        """Write the catalogue to one safetensors file, whole or not at all."""
        keys, titles = text_table(self.keys), text_table(self.titles)
        arrays = (keys.packed, keys.offsets, titles.packed, titles.offsets, self.embeddings)
        tensors: dict[str, NDArray[Any]] = dict(zip(_TYPES, arrays, strict=True))
        tensors |= {f"{_RECORDS}{name}": values for name, values in self.records.items()}
        facts = {"as_of": self.as_of, "fingerprint": self.fingerprint, "n_items": len(self)}
        metadata = {"format_version": str(CATALOGUE_VERSION), "catalogue": json.dumps(facts)}
        temporary = path.with_name(f".{path.name}.new")
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def load_catalogue(path: Path) -> Catalogue:
    """Read a catalogue, all of which stays in the file until it is looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, no catalogue, or of another version.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no catalogue {str(path)!r}; a checkpoint saved by train_accelerate.py has one"
        )
    metadata, tensors = read_tensors(path, dtypes=_DTYPES)
    _check_version(path, metadata)
    facts = _facts(path, metadata)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for name, kind in _TYPES.items():
        if name not in arrays or arrays[name].dtype != kind:
            got = str(arrays[name].dtype) if name in arrays else "nothing"
            raise damaged(path, f"must hold {name} as {kind.__name__}, got {got}")
    try:
        return Catalogue(
            keys=TextTable(arrays["key_bytes"], arrays["key_offsets"]),
            titles=TextTable(arrays["title_bytes"], arrays["title_offsets"]),
            embeddings=arrays["embeddings"],
            as_of=facts["as_of"],
            fingerprint=facts["fingerprint"],
            records={
                name.removeprefix(_RECORDS): array
                for name, array in arrays.items()
                if name.startswith(_RECORDS)
            },
        )
    except ValueError as error:
        raise damaged(path, f"is damaged ({error!s:.300})") from None


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("format_version")
    if version != str(CATALOGUE_VERSION):
        raise damaged(
            path,
            f"has catalogue format {version!s:.20}, this ftmamba reads format {CATALOGUE_VERSION}",
            "install the ftmamba that wrote it, or train again",
        )


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = parse_json(metadata.get("catalogue", ""))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"has facts that are no JSON ({error!s:.200})") from None
    as_of, fingerprint = facts.get("as_of"), facts.get("fingerprint")
    is_time = isinstance(as_of, int) and not isinstance(as_of, bool) and abs(as_of) < _LATEST
    if not isinstance(fingerprint, str) or not (as_of is None or is_time):
        problem = f"has as_of {shown(as_of)} and fingerprint {shown(fingerprint)}"
        raise damaged(path, f"{problem}, they must be a time and a text")
    return {"as_of": as_of, "fingerprint": fingerprint}


def check_records(catalogue: Catalogue, columns: Sequence[Column], rows: slice) -> None:
    """Check that encoded items have the columns of the model, and ids that it knows.

    Args:
        catalogue: with encoded items, or without.
        columns: of the item tower, with their fitted fields.
        rows: the items to check.

    Raises:
        ValueError: a tensor is absent or superfluous, or of another width, or an id is too large.
    """
    tensors = sorted(set(TENSOR_OF_KIND.values()))
    widths = {f"item_{name}": columns_of_tensor(columns, name) for name in tensors}
    wanted = {name: sum(c.width for c in found) for name, found in widths.items() if found}
    kept = {name: record_IS.shape[1] for name, record_IS in catalogue.records.items()}
    if kept and kept != wanted:
        raise ValueError(
            f"the catalogue's encoded items have {shown(kept)} slots, the columns of the items "
            f"make {shown(wanted)}; take both from one save of one checkpoint"
        )
    for name, record_IS in catalogue.records.items():
        if record_IS.dtype.kind == "f":
            continue
        largest = np.repeat(
            [column.vocabulary_size for column in widths[name]],
            [column.width for column in widths[name]],
        )
        ids_IS = record_IS[rows]
        if len(ids_IS) and ((ids_IS.min(0) < 0) | (ids_IS.max(0) >= largest)).any():
            raise ValueError(
                f"the catalogue's encoded items hold ids in {name!r} that the vocabularies do not "
                "have; take both from one save of one checkpoint"
            )


def _as_encoded(values: Tensor) -> Tensor:
    """Return ids in the type that the extractor gives them."""
    return values.clone() if values.is_floating_point() else values.to(torch.int64)


def weights_fingerprint(model: nn.Module) -> str:
    """Hash the names, types, shapes and values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def near_key(key: str, known: Sequence[str]) -> str:
    """Suggest the nearest known key; say nothing where there are too many to search."""
    return near(key, known) if len(known) <= _MOST_KEYS_TO_SUGGEST_FROM else ""
