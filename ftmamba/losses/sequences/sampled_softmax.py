"""Softmax over what came next and a sample of the other items.

Shapes: M positions, C positions of a chunk, S negatives, I items, D embedding.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ftmamba.losses.sequences.candidates import mean_against_negatives


def sequence_sampled_softmax(
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    *,
    negatives: Tensor,
    log_q_I: Tensor | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """Cross-entropy whose sum over the other items is estimated (Bengio & Senécal, 2008).

    A negative drawn with probability q stands for 1 / (S q) items: the sum of exp(logit - log(S q))
    over the negatives has the expectation of the sum of exp(logit) over all items. A negative that
    is the position's own target, an accidental hit, is left out, so the expectation is that over
    all other items, and the target itself, always there, needs no correction.

    Args:
        positions_MD: outputs of positions, already divided by the temperature.
        targets_M: int64, the item that came next, a row of `items_ID`.
        items_ID: embeddings of items.
        negatives: int64, rows of `items_ID`: (S,) shared by all positions, or (M, S).
        log_q_I: natural log of each item's probability of being drawn; None corrects nothing.
        weights_M: weight of each position's loss; None weighs all alike.

    Returns:
        Mean loss, in nats; 0 if there is no position.
    """
    log_n = math.log(max(1, negatives.shape[-1]))

    def losses_of(own_C: Tensor, others_CS: Tensor, targets_C: Tensor, negatives: Tensor) -> Tensor:
        if log_q_I is not None:
            others_CS = others_CS - (log_q_I[negatives] + log_n)
        others_CS = others_CS.masked_fill(negatives == targets_C[:, None], -torch.inf)
        logits = torch.cat([own_C[:, None], others_CS], 1)
        return F.cross_entropy(logits, torch.zeros_like(targets_C), reduction="none")

    return mean_against_negatives(
        losses_of, positions_MD, targets_M, items_ID, negatives, weights_M=weights_M
    )
