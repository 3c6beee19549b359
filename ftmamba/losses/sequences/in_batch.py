"""Softmax over what came next anywhere in the batch.

Shapes: M positions, C positions of a chunk, S distinct targets of the batch, I items, D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ftmamba.losses.sequences.candidates import mean_against_negatives


def sequence_in_batch(
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    *,
    log_q_I: Tensor | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """Softmax over the targets of all positions, log-Q corrected (Yi et al., RecSys 2019, eq. 3).

    It is `ftmamba.losses.in_batch_loss` with every position a row of the batch: its own target
    counts once, another item as often as it is a target. Since that is a weight of the item, an
    item has one logit a position however often it occurs.

    Args:
        positions_MD: outputs of positions, already divided by the temperature.
        targets_M: int64, the item that came next, a row of `items_ID`.
        items_ID: embeddings of items.
        log_q_I: natural log of each item's share of the targets; None corrects nothing.
        weights_M: weight of each position's loss; None weighs all alike.

    Returns:
        Mean loss, in nats; 0 if there is no position.
    """
    distinct_S, counts_S = torch.unique(targets_M, return_counts=True)
    bias_S = counts_S.to(positions_MD.dtype).log()
    if log_q_I is not None:
        bias_S = bias_S - log_q_I[distinct_S]

    def losses_of(
        own_C: Tensor, others_CS: Tensor, targets_C: Tensor, negatives_S: Tensor
    ) -> Tensor:
        if log_q_I is not None:
            own_C = own_C - log_q_I[targets_C]
        is_own_CS = negatives_S == targets_C[:, None]
        others_CS = (others_CS + bias_S).masked_fill(is_own_CS, -torch.inf)
        logits = torch.cat([own_C[:, None], others_CS], 1)
        return F.cross_entropy(logits, torch.zeros_like(targets_C), reduction="none")

    return mean_against_negatives(
        losses_of, positions_MD, targets_M, items_ID, distinct_S, weights_M=weights_M
    )
