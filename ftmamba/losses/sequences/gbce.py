"""Generalised binary cross-entropy against negatives.

Shapes: M positions, C positions of a chunk, S negatives, I items, D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ftmamba.losses.sequences.candidates import mean_against_negatives


def sequence_gbce(
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    *,
    negatives: Tensor,
    n_items: int,
    t: float = 0.75,
    weights_M: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy whose positive counts as sigmoid(score)^beta (gSASRec, RecSys 2023).

    Few negatives make a model overconfident: it learns sigmoid(score) far above the probability.
    Raised to the power beta, which follows from the share of items that is drawn, the score is
    calibrated (Petrov & Macdonald, arXiv 2308.07192).

    NOTE[DIFF]: a negative that is the position's own target adds nothing; in the paper's code it
    pulls against the positive.

    Args:
        positions_MD: outputs of positions, already divided by the temperature.
        targets_M: int64, the item that came next, a row of `items_ID`.
        items_ID: embeddings of items.
        negatives: int64, rows of `items_ID`, drawn uniformly: (S,) for all positions, or (M, S).
        n_items: size of the catalogue from which they were drawn.
        t: 0 is plain binary cross-entropy, 1 calibrates fully.
        weights_M: weight of each position's loss; None weighs all alike.

    Returns:
        Mean over positions and over their 1 + S pairs, in nats; 0 if there is no position.
    """
    beta = gbce_beta(negatives.shape[-1], n_items, t)

    def losses_of(own_C: Tensor, others_CS: Tensor, targets_C: Tensor, negatives: Tensor) -> Tensor:
        others_CS = others_CS.masked_fill(negatives == targets_C[:, None], -torch.inf)
        sum_C = beta * F.softplus(-own_C) + F.softplus(others_CS).sum(1)
        return sum_C / (1 + others_CS.shape[1])

    return mean_against_negatives(
        losses_of, positions_MD, targets_M, items_ID, negatives, weights_M=weights_M
    )


def gbce_beta(n_negatives: int, n_items: int, t: float) -> float:
    """Return the power of the positive's probability (gSASRec).

    Raises:
        ValueError: `t` is not in [0, 1], or there are not from 1 to n_items - 1 negatives.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"loss 'gbce': t must be in [0, 1], got {t}")
    if not 1 <= n_negatives <= n_items - 1:
        raise ValueError(
            f"loss 'gbce': {n_negatives} negatives of a catalogue of {n_items} items; draw from 1 "
            f"to {n_items - 1}"
        )
    alpha = n_negatives / (n_items - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)
