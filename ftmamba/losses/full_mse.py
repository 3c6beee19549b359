"""Squared error over the whole catalogue, without ever forming all scores.

Shapes: B interactions, I items of the catalogue, D embedding.
"""

from torch import Tensor


def full_mse_loss(
    users_BD: Tensor,
    catalogue_ID: Tensor,
    positives_B: Tensor,
    *,
    user_counts_B: Tensor,
    positive_weight: float,
    l2: float,
) -> Tensor:
    """The objective of implicit ALS (Hu, Koren & Volinsky, ICDM 2008, equation 3), by the batch.

    Over all users u and items i it is, up to a constant,

        sum_u [ sum_i w_ui (x_ui - s_ui)^2 + l2 (|u|^2 + mean_i |v_i|^2) ]

    where an interaction has label x 1 and weight w = `positive_weight`, any other pair label 0 and
    weight 1. Summed over the catalogue, the squared scores of a user are u' (V'V) u, so a
    step costs O((B + I) D^2) and no matrix of users by items is made (Bayer et al., WWW 2017).
    Each interaction stands for its own positive and for 1 / count of its user's catalogue.

    Args:
        users_BD: embeddings of the interactions' users, already divided by the temperature.
        catalogue_ID: embeddings of all items, in the order of their ids.
        positives_B: int64, each interaction's item.
        user_counts_B: training interactions of each interaction's user.
        positive_weight: weight of an interaction against 1 for any other pair.
        l2: penalty on the embeddings.

    Returns:
        Mean over the interactions; its mean over all of them is the objective over their number.
    """
    gram_DD = catalogue_ID.T @ catalogue_ID
    scores_B = (users_BD * catalogue_ID[positives_B]).sum(-1)
    own_B = positive_weight * (1 - scores_B).square() - scores_B.square()
    catalogue_B = ((users_BD @ gram_DD) * users_BD).sum(-1)
    length = catalogue_ID.square().sum(-1).mean()
    penalty_B = l2 * (users_BD.square().sum(-1) + length)
    return (own_B + (catalogue_B + penalty_B) / user_counts_B).mean()
