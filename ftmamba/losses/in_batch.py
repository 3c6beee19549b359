"""Softmax over the items of the batch.

Shapes: B users, M items of the batch (of all ranks), D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def in_batch_loss(
    users_BD: Tensor,
    items_MD: Tensor,
    *,
    positives_B: Tensor,
    item_ids_M: Tensor,
    log_q_M: Tensor | None = None,
    known_BM: Tensor | None = None,
) -> Tensor:
    """Softmax over the batch's items with the log-Q correction (Yi et al., RecSys 2019, eq. 3).

    An item drawn with probability q is a negative q times as often as it would be in a softmax
    over the catalogue; `logits - log q` undoes that. An accidental hit, the user's own item at
    another place of the batch, is left out of the softmax.

    Args:
        users_BD: user embeddings, already divided by the temperature.
        items_MD: embeddings of the batch's items.
        positives_B: int64, place in the batch of each user's positive.
        item_ids_M: int64, which item stands at each place.
        log_q_M: natural log of each item's probability of being drawn; None corrects nothing.
        known_BM: bool; pairs that are known positives and no negatives. None masks none.

    Returns:
        Mean loss, in nats.
    """
    logits_BM = users_BD @ items_MD.T
    if log_q_M is not None:
        logits_BM = logits_BM - log_q_M
    excluded_BM = item_ids_M[positives_B][:, None] == item_ids_M
    if known_BM is not None:
        excluded_BM = excluded_BM | known_BM
    excluded_BM.scatter_(1, positives_B[:, None], value=False)
    return F.cross_entropy(logits_BM.masked_fill(excluded_BM, -torch.inf), positives_B)
