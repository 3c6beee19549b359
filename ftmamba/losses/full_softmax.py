"""Softmax over the whole catalogue.

Shapes: B users, I items of the catalogue, D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_softmax_loss(
    users_BD: Tensor,
    catalogue_ID: Tensor,
    positives_B: Tensor,
    *,
    log_weights_I: Tensor | None = None,
    known_BI: Tensor | None = None,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over every item of the catalogue (Covington et al., RecSys 2016, eq. 1).

    No sampling, so nothing to correct; the cost of a step grows with the catalogue.

    Args:
        users_BD: user embeddings, already divided by the temperature.
        catalogue_ID: embeddings of all items, in the order of their ids.
        positives_B: int64, place of each user's item in `catalogue_ID`.
        log_weights_I: log of how many items each of `catalogue_ID` stands for, where those are a
            sample of the catalogue; None for all items.
        known_BI: bool; items that are no negatives of a user, such as the user's other positives.
        weights_B: weight of each user's loss; None weighs all alike.

    Returns:
        Mean loss, in nats.
    """
    logits_BI = users_BD @ catalogue_ID.T
    if log_weights_I is not None:
        logits_BI = logits_BI + log_weights_I
    if known_BI is not None:
        is_positive_BI = torch.zeros_like(known_BI).scatter_(1, positives_B[:, None], value=True)
        logits_BI = logits_BI.masked_fill(known_BI & ~is_positive_BI, -torch.inf)
    losses_B = F.cross_entropy(logits_BI, positives_B, reduction="none")
    return losses_B.mean() if weights_B is None else (losses_B * weights_B).mean()
