"""Binary cross-entropy over pairs.

Shapes: P pairs of a user and an item.
"""

from torch import Tensor
from torch.nn import functional as F

from ftmamba.losses.mse import mean_of_included


def bce_loss(scores_P: Tensor, labels_P: Tensor, included_P: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy with logits (He et al., NCF, WWW 2017, equation 7).

    Args:
        scores_P: scores of pairs, read as log-odds.
        labels_P: 1 for an interaction, 0 for a negative.
        included_P: bool; pairs that count. None counts all.

    Returns:
        Mean over all pairs, in nats, those that do not count adding 0.
    """
    losses_P = F.binary_cross_entropy_with_logits(scores_P, labels_P, reduction="none")
    return mean_of_included(losses_P, included_P)
