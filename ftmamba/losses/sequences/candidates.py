"""Logits of what came next and of negatives, a chunk of positions at a time.

Shapes: M positions, C positions of a chunk, S negatives, I items, D embedding.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ftmamba.losses.sequences.in_chunks import mean_in_chunks

NUMBERS_AT_ONCE = 2**22
"""Logits, or numbers of negatives' embeddings, of a chunk: 16 MB of float32."""

LossOfLogits: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From the target's logit (C,), those of the negatives (C, S), the targets (C,) and the negatives
(S,) or (C, S) to the losses (C,)."""


def mean_against_negatives(
    losses_of: LossOfLogits,
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    negatives: Tensor,
    *,
    weights_M: Tensor | None = None,
) -> Tensor:
    """Return the mean of a loss of the logits of targets and negatives.

    Args:
        losses_of: the loss.
        positions_MD: outputs of positions, already divided by the temperature.
        targets_M: int64, the item that came next, a row of `items_ID`.
        items_ID: embeddings of items.
        negatives: int64, rows of `items_ID`: (S,) for all positions, or (M, S) for each its own.
        weights_M: weight of each position's loss; None weighs all alike.

    Returns:
        Mean over the positions; 0 if there is none.
    """
    if negatives.ndim == 1:
        shared_SD = items_ID[negatives]

        def with_shared(
            hidden_CD: Tensor, targets_CD: Tensor, targets_C: Tensor, negatives_SD: Tensor
        ) -> Tensor:
            own_C = (hidden_CD * targets_CD).sum(-1)
            return losses_of(own_C, hidden_CD @ negatives_SD.T, targets_C, negatives)

        rows = (positions_MD, items_ID[targets_M], targets_M)
        chunk = max(1, NUMBERS_AT_ONCE // max(1, len(negatives)))
        return mean_in_chunks(with_shared, rows, (shared_SD,), chunk=chunk, weights_M=weights_M)

    def with_own(
        hidden_CD: Tensor, targets_C: Tensor, negatives_CS: Tensor, all_ID: Tensor
    ) -> Tensor:
        own_C = (hidden_CD * all_ID[targets_C]).sum(-1)
        others_CS = torch.einsum("cd,csd->cs", hidden_CD, all_ID[negatives_CS])
        return losses_of(own_C, others_CS, targets_C, negatives_CS)

    n_numbers = max(1, negatives.shape[1] * items_ID.shape[1])
    return mean_in_chunks(
        with_own,
        (positions_MD, targets_M, negatives),
        (items_ID,),
        chunk=max(1, NUMBERS_AT_ONCE // n_numbers),
        weights_M=weights_M,
    )
