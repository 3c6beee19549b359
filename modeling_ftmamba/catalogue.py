"""The catalogue of a checkpoint: every item's key, title and embedding, and the best items of it.

Shapes: U users, I items, E embedding, S slots of an encoded record, K ranks.
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from .configuration_ftmamba import near
from .encoders import TextTable, text_table

CATALOGUE_NAME = "catalogue.safetensors"
CATALOGUE_VERSION = 1
LONGEST_KEY = 4096  # bytes
GROUP_SIZE = 32
CAST_TYPES = (torch.bfloat16, torch.float16, torch.float64)
_TEXTS = ("key_bytes", "key_offsets", "title_bytes", "title_offsets")
_RECORDS = "records/"
_MOST_TO_SUGGEST_FROM = 50_000


class KeyIndex:
    """Finds rows by a hash of the keys' bytes; `repeated` is a key that occurs twice, or None."""

    def __init__(self, keys: TextTable) -> None:
        if (longest := np.diff(keys.offsets).max(initial=0)) > LONGEST_KEY:
            raise ValueError(f"a key has {longest} bytes, at most {LONGEST_KEY} are read")
        hash_N = _hashes(keys)
        self._keys, self._order_N = keys, np.argsort(hash_N)
        self._sorted_N = hash_N[self._order_N]
        # Anyone can choose keys that share a hash; then a dict finds the rows.
        has_alike = bool((self._sorted_N[1:] == self._sorted_N[:-1]).any())
        self._row_of = {key: row for row, key in enumerate(keys)} if has_alike else {}
        repeats = (key for row, key in enumerate(keys) if self._row_of[key] != row)
        self.repeated = next(repeats, None) if has_alike else None

    def rows(self, keys: Iterable[str]) -> list[int | None]:
        """Return the row of each key, None where there is none."""
        asked = list(keys)
        if self._row_of or not len(self._keys):
            return [self._row_of.get(key) for key in asked]
        index = np.searchsorted(self._sorted_N, _hashes(text_table(asked)))
        found = self._order_N[np.minimum(index, len(self._keys) - 1)]
        rows = zip(found.tolist(), self._keys.take(found), asked, strict=True)
        return [row if own == key else None for row, own, key in rows]


def _hashes(keys: TextTable) -> NDArray[np.uint64]:
    """Return a hash of each key (N,), read eight bytes at a time."""
    starts_N, lengths_N = keys.offsets[:-1], np.diff(keys.offsets)
    # The eight bytes from each byte on, as one number.
    padded = np.concatenate([keys.packed, np.zeros(8, np.uint8)])
    words = np.ndarray(len(keys.packed) + 1, np.dtype("<u8"), padded.data, strides=(1,))
    hash_N = lengths_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for start in range(0, lengths_N.max(initial=0), 8):
        rows = np.flatnonzero(lengths_N > start)
        absent = np.maximum(start + 8 - lengths_N[rows], 0).astype(np.uint64) * np.uint64(8)
        word = words[starts_N[rows] + start] << absent
        mixed = (hash_N[rows] ^ word) * np.uint64(0xD6E8FEB86659FD93)
        hash_N[rows] = mixed ^ (mixed >> np.uint64(32))
    return hash_N


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended; row i is the item with the dense id i."""

    keys: Sequence[str]  # in the raw table, unique
    titles: Sequence[str]  # what to show a person; empty texts where the table has no title
    embeddings: NDArray[np.float32]  # (I, E), of the item tower
    as_of: int | None = None  # UTC seconds at which the items' popularity was counted
    fingerprint: str = ""  # of the weights that made the embeddings (`weights_fingerprint`)
    cast_fingerprints: Sequence[str] = ()  # of the same weights as `CAST_TYPES`
    # The encoded items (I, S) by the extractor's names, if they are kept for explanations.
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", text_table(self.keys))
        object.__setattr__(self, "titles", text_table(self.titles))
        n_items, found = len(self.keys), self.embeddings
        if found.ndim != 2 or found.dtype != np.float32:
            got = f"{found.dtype} {found.shape}"
            raise ValueError(f"a catalogue's embeddings must be float32 (items, width), got {got}")
        lengths = {"titles": len(self.titles), "embeddings": len(found)}
        lengths |= {name: len(record_IS) for name, record_IS in self.records.items()}
        if n_items == 0 or set(lengths.values()) != {n_items}:
            raise ValueError(f"a catalogue of {n_items} items must have one each of: {lengths}")
        if self.index.repeated is not None:
            raise ValueError(f"the item key {self.index.repeated!r} occurs twice in a catalogue")

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def index(self) -> KeyIndex:
        """The index of the item keys."""
        return KeyIndex(text_table(self.keys))

    def is_of(self, model: nn.Module) -> bool:
        """Return whether the model's weights made it, in whatever type they are loaded."""
        return weights_fingerprint(model) in (self.fingerprint, *self.cast_fingerprints)

    def row(self, item_key: str) -> int:
        """Return the row of an item; an unknown key raises a ValueError with the nearest one."""
        row = self.index.rows([item_key])[0] if isinstance(item_key, str) else None
        if row is None:
            guess = near(item_key, self.keys) if len(self) <= _MOST_TO_SUGGEST_FROM else ""
            raise ValueError(f"no item {item_key!r} among the {len(self)} of the catalogue{guess}")
        return row

    def save(self, path: Path) -> None:
        """Write the catalogue to one safetensors file."""
        tables = text_table(self.keys), text_table(self.titles)
        texts = [array for table in tables for array in (table.packed, table.offsets)]
        arrays = {**dict(zip(_TEXTS, texts, strict=True)), "embeddings": self.embeddings}
        arrays |= {f"{_RECORDS}{name}": values for name, values in self.records.items()}
        facts = {"as_of": self.as_of, "fingerprint": self.fingerprint, "n_items": len(self)}
        facts["cast_fingerprints"] = list(self.cast_fingerprints)
        metadata = {"format_version": str(CATALOGUE_VERSION), "catalogue": json.dumps(facts)}
        temporary = path.with_name(f".{path.name}.new")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)
        temporary.replace(path)


def load_catalogue(path: Path) -> Catalogue:
    """Read a catalogue, whose arrays stay in the file until they are used."""
    if not path.exists():
        raise FileNotFoundError(f"no catalogue {str(path)!r}; training saves one in a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        version = metadata.get("format_version")
        if version != str(CATALOGUE_VERSION):
            raise ValueError(f"format {version!s:.20}, this code reads {CATALOGUE_VERSION}")
        facts = json.loads(metadata["catalogue"])
        packed = [arrays.pop(name) for name in _TEXTS]
        keys, titles = TextTable(*packed[:2]), TextTable(*packed[2:])
        own = (arrays.pop("embeddings"), facts["as_of"], facts["fingerprint"])
        cast = tuple(map(str, facts.get("cast_fingerprints", ())))
        records = {name.removeprefix(_RECORDS): array for name, array in arrays.items()}
        return Catalogue(keys, titles, *own, cast, records)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{str(path)!r} is truncated or no catalogue ({error!s:.300})"
        raise ValueError(f"{problem}; download or save the checkpoint again") from None


def weights_fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Hash the names, types, shapes and values of a model's weights, cast to `dtype` if given."""
    digest = hashlib.sha256()
    for name, stored in sorted(model.state_dict().items()):
        tensor = stored.to(dtype) if dtype and stored.is_floating_point() else stored
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def top_k(scores_UI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` highest scores of each row and their items (U, K), best first.

    Among equal scores the lower item id comes first, also among those level with the last one;
    `torch.topk` alone promises neither.
    """
    n_items = scores_UI.shape[1]
    if not 1 <= k <= n_items:
        raise ValueError(f"k must be between 1 and the {n_items} items of the catalogue, got {k}")
    # One more than asked for: a tie with the last one shows without a pass over all scores.
    n, n_groups = min(k + 1, n_items), n_items // GROUP_SIZE
    if n_groups < 2 * n:
        values, ids = torch.topk(scores_UI, n, dim=1)
    else:
        # The n highest are in the n groups with the highest maxima, several times faster than
        # `torch.topk` of all. A group is every `n_groups`-th item; a few are behind the last group.
        n_grouped, device = n_groups * GROUP_SIZE, scores_UI.device
        highest_UG = scores_UI[:, :n_grouped].view(-1, GROUP_SIZE, n_groups).amax(1)
        groups = torch.topk(highest_UG, n, dim=1).indices[:, :, None]
        members = (groups + torch.arange(0, n_grouped, n_groups, device=device)).flatten(1)
        rest = torch.arange(n_grouped, n_items, device=device).expand(len(scores_UI), -1)
        candidates = torch.cat([members, rest], dim=1)
        values, index = torch.topk(scores_UI.gather(1, candidates), n, dim=1)
        ids = candidates.gather(1, index)
    ids_UK, last_U1 = ids[:, :k], values[:, k - 1 : k]
    is_tied_U = (values[:, k:] == last_U1).any(1)
    if bool(is_tied_U.any()):
        scores, last = scores_UI[is_tied_U], last_U1[is_tied_U]
        is_above, is_level = scores > last, scores == last
        n_wanted = k - is_above.sum(1, keepdim=True)
        is_chosen = is_above | (is_level & (is_level.cumsum(1, dtype=torch.int32) <= n_wanted))
        ids_UK[is_tied_U] = is_chosen.nonzero()[:, 1].view(-1, k)
    ids_UK = ids_UK.sort(dim=1).values
    values_UK, order_UK = scores_UI.gather(1, ids_UK).sort(dim=1, descending=True, stable=True)
    return values_UK, ids_UK.gather(1, order_UK)
