"""Embedding a whole table in blocks: at the model's speed, in memory that does not grow with it.

Shapes: R rows of the table, B rows of a block, I items, E embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.read_ahead import pinned, read_ahead, to_device
from modeling_ftmamba.catalogue import CAST_TYPES, Catalogue, weights_fingerprint
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

Rows = Callable[[int, int], Mapping[str, Tensor]]
"""Returns the encoded rows from the first number to the second as the model's arguments."""

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**18}
"""On a CPU a block stays in the cache, so small that its memory is used again; any other device
is to be filled."""

ROWS_AT_ONCE = 2**16
"""Rows gathered for several blocks, so that looking them up costs little."""

MOST_BYTES_A_RECORD = 1024
"""Encoded items wider than that, such as with the embedding of a text, are not kept."""


@torch.inference_mode()
def embed_table(
    model: FTMambaTwoTowerModel,
    tower: str,
    n_rows: int,
    rows: Rows,
    *,
    n_events: NDArray[np.int64] | None = None,
) -> Tensor:
    """Embed rows of a table with one tower, in evaluation mode; return float32 (R, E) on the CPU.

    Args:
        model: put back into training mode afterwards if it was in it.
        tower: "user" or "item".
        n_rows: how many rows there are.
        rows: gives a stretch of them; for a GPU it is called in a thread that reads ahead.
        n_events: (R,), ascending: how long a history each row brings. A block of longer ones has
            fewer rows, and `rows` is asked for it alone, so that it pads them to no more than its
            own longest.

    Raises:
        ValueError: `rows` gave fewer than it was asked for.
    """
    embed: Callable[..., Tensor] = (
        model.get_user_embeddings if tower == "user" else model.get_item_embeddings
    )
    if n_events is None:
        blocks = _blocks(rows, n_rows, block_size(model, tower))
    else:
        blocks = (rows(start, stop) for start, stop in _stretches(n_events, _most_tokens(model)))
    embeds_RE = torch.empty(n_rows, model.config.projection_size, dtype=torch.float32)
    was_training = model.training
    model.train(False)
    try:
        start = 0
        with _ready(blocks, model.device) as ready:
            for block in ready:
                embeds_BE = embed(**to_device(block, model.device))
                embeds_RE[start : start + len(embeds_BE)] = embeds_BE
                start += len(embeds_BE)
    finally:
        model.train(was_training)
    if start != n_rows:
        raise ValueError(
            f"the {tower} tower was given {start} rows of a table of {n_rows}; keys and encoded "
            "records must be of the same table"
        )
    return embeds_RE


def embed_catalogue(
    model: FTMambaTwoTowerModel,
    items: Mapping[str, Tensor] | Rows,
    *,
    keys: Sequence[str],
    titles: Sequence[str],
    as_of: int | None = None,
    exclude_seen: bool = True,
) -> Catalogue:
    """Embed every item in blocks, without dropout, on the model's device.

    Args:
        model: put back into training mode afterwards if it was in it.
        items: encoded items as the extractor gives them (`item_numeric`, ...), row i = item i; or
            a function that gives any stretch of them, so that they need not all be in memory.
        keys: the items' keys.
        titles: the items' titles; an empty sequence where the table has none.
        as_of: when the popularity in `items` was counted.
        exclude_seen: whether recommendations leave out seen items unless asked not to.
    """
    rows = items if callable(items) else rows_of(items)
    n_items = len(keys) if callable(items) else len(next(iter(items.values())))
    embeds_IE = embed_table(model, "item", n_items, rows)
    first = rows(0, min(n_items, 1))
    n_bytes = sum(tensor.nbytes for tensor in first.values())
    records: dict[str, NDArray[np.generic]] = {}
    if n_bytes <= MOST_BYTES_A_RECORD:
        for name, tensor in first.items():
            # Ids take half: no vocabulary has 2**31 of them.
            dtype = np.float32 if tensor.is_floating_point() else np.int32
            records[name] = np.empty((n_items, *tensor.shape[1:]), dtype)
        for start in range(0, n_items, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, n_items)
            for name, tensor in rows(start, stop).items():
                records[name][start:stop] = tensor.cpu().numpy()
    return Catalogue(
        keys=tuple(keys),
        titles=tuple(titles) or ("",) * len(keys),
        embeddings=embeds_IE.numpy(),
        as_of=as_of,
        fingerprint=weights_fingerprint(model),
        cast_fingerprints=[weights_fingerprint(model, dtype) for dtype in CAST_TYPES],
        records=records,
        exclude_seen=exclude_seen,
    )


def rows_of(tensors: Mapping[str, Tensor]) -> Rows:
    """Return what slices tensors of a whole table, without copying."""
    return lambda start, stop: {name: tensor[start:stop] for name, tensor in tensors.items()}


def block_size(model: FTMambaTwoTowerModel, tower: str) -> int:
    """Return how many records have as many tokens as the model's device embeds best at once."""
    config = {"user": model.user_tower.config, "item": model.item_tower.config}[tower]
    return max(1, _most_tokens(model) // (len(config.parsed_columns()) + 1))


def _most_tokens(model: FTMambaTwoTowerModel) -> int:
    return TOKENS_AT_ONCE["cpu" if model.device.type == "cpu" else "cuda"]


def _stretches(n_events: NDArray[np.int64], n_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and end: of at most so many padded events, but of one row."""
    start = 0
    while start < len(n_events):
        stop = start + 1
        while stop < len(n_events) and (stop + 1 - start) * max(1, n_events[stop]) <= n_tokens:
            stop += 1
        yield start, stop
        start = stop


def _blocks(rows: Rows, n_rows: int, size: int) -> Iterator[Mapping[str, Tensor]]:
    stretch = -(-ROWS_AT_ONCE // size) * size
    for start in range(0, n_rows, stretch):
        stop = min(start + stretch, n_rows)
        block = rows_of(rows(start, stop))
        for first in range(0, stop - start, size):
            yield block(first, first + size)


def _ready(
    blocks: Iterable[Mapping[str, Tensor]], device: torch.device
) -> AbstractContextManager[Iterable[Mapping[str, Tensor]]]:
    """Read ahead for a GPU; on a CPU the thread would only take time from the model."""
    if device.type == "cpu":
        return nullcontext(blocks)
    return read_ahead(pinned(block, device) for block in blocks)
