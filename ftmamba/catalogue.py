"""The catalogue of a checkpoint: every item's key, title and embedding.

Shapes: I items, E embedding, B items embedded at a time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from ftmamba.atomic import whole_file
from modeling_ftmamba.columns import near
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.string_table import pack_strings, unpack_strings

CATALOGUE_VERSION = 1

_TENSORS = ("key_bytes", "key_offsets", "title_bytes", "title_offsets", "embeddings")
_MOST_KEYS_TO_SUGGEST_FROM = 50_000


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended; row i is the item with the dense id i.

    Attributes:
        keys: the item's key in the raw table, unique.
        titles: what to show a person; empty texts where the table has no title.
        embeddings: float32 (I, E), of the item tower.
        as_of: UTC seconds at which the items' popularity was counted, or None.
        fingerprint: of the weights that made the embeddings (`weights_fingerprint`).
    """

    keys: tuple[str, ...]
    titles: tuple[str, ...]
    embeddings: NDArray[np.float32]
    as_of: int | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
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
        if len(self._row_of_key) != n_items:
            raise ValueError(f"the item key {self._first_repeated()!r} occurs twice in a catalogue")
        if not np.isfinite(self.embeddings).all():
            row = int(np.flatnonzero(~np.isfinite(self.embeddings).all(1))[0])
            raise ValueError(
                f"the embedding of item {self.keys[row]!r} (row {row}) is not finite; "
                "the model has diverged or its input had NaN or Inf"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _row_of_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def _first_repeated(self) -> str:
        return next(k for row, k in enumerate(self.keys) if self._row_of_key[k] != row)

    def row(self, item_key: str) -> int:
        """Return the row of an item.

        Raises:
            ValueError: no item has that key; the near one is suggested.
        """
        row = self._row_of_key.get(item_key)
        if row is None:
            raise ValueError(
                f"no item {item_key!r} among the {len(self)} of the catalogue"
                f"{near_key(item_key, self.keys)}"
            )
        return row

    def rows_of_known(self, item_keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of those keys that the catalogue holds."""
        rows = [self._row_of_key[key] for key in item_keys if key in self._row_of_key]
        return np.asarray(rows, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the catalogue to one safetensors file, whole or not at all."""
        key_bytes, key_offsets = pack_strings(list(self.keys))
        title_bytes, title_offsets = pack_strings(list(self.titles))
        facts = {"as_of": self.as_of, "fingerprint": self.fingerprint, "n_items": len(self)}
        tensors = dict(
            zip(
                _TENSORS,
                (key_bytes, key_offsets, title_bytes, title_offsets, self.embeddings),
                strict=True,
            )
        )
        metadata = {"format_version": str(CATALOGUE_VERSION), "catalogue": json.dumps(facts)}
        with whole_file(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata)


def load_catalogue(path: Path) -> Catalogue:
    """Read a catalogue.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, no catalogue, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no catalogue {str(path)!r}; a checkpoint saved by train_accelerate.py has one"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_version(path, metadata)
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is truncated or no safetensors file ({error}); copy or train it again"
        ) from error
    facts = json.loads(metadata["catalogue"])
    return Catalogue(
        keys=tuple(unpack_strings(tensors["key_bytes"], tensors["key_offsets"])),
        titles=tuple(unpack_strings(tensors["title_bytes"], tensors["title_offsets"])),
        embeddings=tensors["embeddings"],
        as_of=facts["as_of"],
        fingerprint=facts["fingerprint"],
    )


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("format_version")
    if version != str(CATALOGUE_VERSION):
        raise ValueError(
            f"{str(path)!r} has catalogue format {version}, this ftmamba reads format "
            f"{CATALOGUE_VERSION}; install the ftmamba that wrote it, or train again"
        )


def embed_catalogue(
    model: FTMambaTwoTowerModel,
    items: Mapping[str, Tensor],
    *,
    keys: Sequence[str],
    titles: Sequence[str],
    as_of: int | None = None,
    block_size: int = 4096,
) -> Catalogue:
    """Embed every item in blocks, without dropout, on the model's device.

    Args:
        model: put back into training mode afterwards if it was in it.
        items: encoded items as the extractor gives them (`item_numeric`, ...), row i = item i.
        keys: the items' keys.
        titles: the items' titles; an empty sequence where the table has none.
        as_of: when the popularity in `items` was counted.
        block_size: items embedded at a time.
    """
    return Catalogue(
        keys=tuple(keys),
        titles=tuple(titles) or ("",) * len(keys),
        embeddings=embed_items(model, items, block_size=block_size).numpy(),
        as_of=as_of,
        fingerprint=weights_fingerprint(model),
    )


@torch.inference_mode()
def embed_items(
    model: FTMambaTwoTowerModel, items: Mapping[str, Tensor], *, block_size: int = 4096
) -> Tensor:
    """Embed encoded items in blocks, in evaluation mode; return float32 (I, E) on the CPU."""
    was_training = model.training
    model.train(False)
    n_items = len(next(iter(items.values())))
    blocks = [
        model.get_item_embeddings(
            **{k: v[start : start + block_size].to(model.device) for k, v in items.items()}
        )
        for start in range(0, n_items, block_size)
    ]
    model.train(was_training)
    return torch.cat(blocks).float().cpu()


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
