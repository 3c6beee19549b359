"""Embedding a whole table in blocks: at the model's speed, in memory that does not grow with it.

Shapes: R rows of the table, B rows of a block, E embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.read_ahead import pinned, read_ahead, to_device
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

Rows = Callable[[int, int], Mapping[str, Tensor]]
"""Returns the encoded rows from the first number to the second as the model's arguments."""

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**18}
"""On a CPU a block stays in the cache, and so small that its memory is used again; a GPU is to be
filled. Other devices are taken for GPUs."""

ROWS_AT_ONCE = 2**16
"""Rows gathered for several blocks, so that looking them up costs little."""


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


def embed_items(model: FTMambaTwoTowerModel, items: Mapping[str, Tensor]) -> Tensor:
    """Embed items encoded by the extractor, (I, ...) each; see `embed_table`."""
    n_items = len(next(iter(items.values())))
    return embed_table(model, "item", n_items, rows_of(items))


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
