"""Making the catalogue of a checkpoint; what it is, `modeling_ftmamba.catalogue_file` says.

Shapes: I items, E embedding.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.table_embedding import ROWS_AT_ONCE, Rows, embed_items, embed_table, rows_of
from modeling_ftmamba.catalogue_file import (
    CATALOGUE_VERSION,
    Catalogue,
    load_catalogue,
    near_key,
    weights_fingerprint,
)
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

__all__ = [
    "CATALOGUE_VERSION",
    "Catalogue",
    "embed_catalogue",
    "load_catalogue",
    "near_key",
    "weights_fingerprint",
]

MOST_BYTES_A_RECORD = 1024
"""Encoded items wider than that, such as with the embedding of a text, are not kept."""


def embed_catalogue(
    model: FTMambaTwoTowerModel,
    items: Mapping[str, Tensor] | Rows,
    *,
    keys: Sequence[str],
    titles: Sequence[str],
    as_of: int | None = None,
) -> Catalogue:
    """Embed every item in blocks, without dropout, on the model's device.

    Args:
        model: put back into training mode afterwards if it was in it.
        items: encoded items as the extractor gives them (`item_numeric`, ...), row i = item i; or
            what gives any stretch of them, so that they need not all be in memory.
        keys: the items' keys.
        titles: the items' titles; an empty sequence where the table has none.
        as_of: when the popularity in `items` was counted.
    """
    if callable(items):
        embeds_IE = embed_table(model, "item", len(keys), items)
    else:
        embeds_IE = embed_items(model, items)
    return Catalogue(
        keys=tuple(keys),
        titles=tuple(titles) or ("",) * len(keys),
        embeddings=embeds_IE.numpy(),
        as_of=as_of,
        fingerprint=weights_fingerprint(model),
        records=_records(items, len(keys)),
    )


def _records(items: Mapping[str, Tensor] | Rows, n_items: int) -> dict[str, NDArray[np.generic]]:
    """Return the encoded items to keep, for explanations, beside their embeddings."""
    rows = items if callable(items) else rows_of(items)
    first = rows(0, min(n_items, 1))
    n_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in first.values())
    if n_items == 0 or n_bytes > MOST_BYTES_A_RECORD:
        return {}
    kept: dict[str, NDArray[np.generic]] = {
        name: np.empty((n_items, *tensor.shape[1:]), _dtype(tensor))
        for name, tensor in first.items()
    }
    for start in range(0, n_items, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, n_items)
        for name, tensor in rows(start, stop).items():
            kept[name][start:stop] = tensor.cpu().numpy()
    return kept


def _dtype(tensor: Tensor) -> type[np.generic]:
    """Halve ids: no vocabulary has 2**31 of them."""
    return np.float32 if tensor.is_floating_point() else np.int32
