"""The squared error of FT-Mamba's paper.

Shapes: P pairs of a user and an item.
"""

from torch import Tensor
from torch.nn import functional as F


def mse_loss(scores_P: Tensor, labels_P: Tensor, included_P: Tensor | None = None) -> Tensor:
    """Mean squared error of the inner product against the label (Starnes & Webster, 2024).

    Args:
        scores_P: scores of pairs.
        labels_P: 1 for an interaction, 0 for a negative.
        included_P: bool; pairs that count. None counts all.

    Returns:
        Mean over all pairs, those that do not count adding 0: so that ranks with different numbers
        of such pairs still average to the mean of the global batch.
    """
    losses_P = F.mse_loss(scores_P, labels_P, reduction="none")
    return mean_of_included(losses_P, included_P)


def mean_of_included(losses_P: Tensor, included_P: Tensor | None) -> Tensor:
    """Return the mean over all pairs, those that do not count adding 0."""
    return losses_P.mean() if included_P is None else losses_P.where(included_P, 0).mean()
