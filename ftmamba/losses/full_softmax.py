"""Softmax over the whole catalogue.

Shapes: B users, I items of the catalogue, D embedding.
"""

from torch import Tensor
from torch.nn import functional as F


def full_softmax_loss(users_BD: Tensor, catalogue_ID: Tensor, positives_B: Tensor) -> Tensor:
    """Cross-entropy over every item of the catalogue (Covington et al., RecSys 2016, eq. 1).

    No sampling, so nothing to correct; the cost of a step grows with the catalogue.

    Args:
        users_BD: user embeddings, already divided by the temperature.
        catalogue_ID: embeddings of all items, in the order of their ids.
        positives_B: int64, each user's item.

    Returns:
        Mean loss, in nats.
    """
    return F.cross_entropy(users_BD @ catalogue_ID.T, positives_B)
