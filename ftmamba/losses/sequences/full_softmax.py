"""Softmax over the whole catalogue at every position.

Shapes: M positions, I items, D embedding.
"""

import torch
from torch import Tensor

from ftmamba.losses.sequences.fused_linear_cross_entropy import fused_linear_cross_entropy
from ftmamba.losses.sequences.prefixes import Prefixes


def sequence_full_softmax(  # noqa: PLR0913 - as the function it names
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    *,
    bias_I: Tensor | None = None,
    label_smoothing: float = 0.0,
    weights_M: Tensor | None = None,
    prefixes: Prefixes | None = None,
    repeat_bias: Tensor | None = None,
    products_in: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy over every item, as Mamba4Rec trains (Liu et al., arXiv 2403.03900).

    Args:
        positions_MD: outputs of positions, already divided by the temperature.
        targets_M: int64, the item that came next, a row of `items_ID`.
        items_ID: embeddings of all items.
        bias_I: added to each item's logits.
        label_smoothing: share of a label that is spread over all items.
        weights_M: weight of each position's loss; None weighs all alike.
        prefixes: items ahead of each position; None treats all items alike.
        repeat_bias: (1,), added to their logits; None makes them no negatives there.
        products_in: type of the matrix products, see `fused_linear_cross_entropy`.

    Returns:
        Mean loss, in nats; 0 if there is no position.
    """
    return fused_linear_cross_entropy(
        positions_MD,
        items_ID,
        targets_M,
        bias_I,
        label_smoothing,
        weights_M=weights_M,
        prefixes=prefixes,
        repeat_bias=repeat_bias,
        products_in=products_in,
    )
