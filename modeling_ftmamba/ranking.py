"""The top of a ranking, exact and deterministic.

Shapes: U users, I items, G groups of items, K places.
"""

import torch
from torch import Tensor

GROUP_SIZE = 32


def top_k(scores_UI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` highest scores of each row and their items, best first.

    Among equal scores the lower item id comes first, also where the ties straddle the last place;
    `torch.topk` alone promises neither.

    Args:
        scores_UI: scores without NaN.
        k: at most I.

    Returns:
        scores_UK and ids_UK.

    Raises:
        ValueError: k is not between 1 and the size of the catalogue.
    """
    n_items = scores_UI.shape[1]
    if not 1 <= k <= n_items:
        raise ValueError(
            f"k must be between 1 and the {n_items} items of the catalogue, got {k}; ask for fewer"
        )
    # One place more than asked: a tie at the last place shows without a pass over all scores.
    values, ids = _largest(scores_UI, min(k + 1, n_items))
    ids_UK, last_U1 = ids[:, :k], values[:, k - 1 : k]
    is_tied_U = (values[:, k:] == last_U1).any(1)
    if bool(is_tied_U.any()):
        ids_UK[is_tied_U] = _lowest_ids(scores_UI[is_tied_U], last_U1[is_tied_U], k)
    ids_UK = ids_UK.sort(dim=1).values
    values_UK, order_UK = scores_UI.gather(1, ids_UK).sort(dim=1, descending=True, stable=True)
    return values_UK, ids_UK.gather(1, order_UK)


def _largest(scores_UI: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the n highest scores of each row, best first, and items that have them.

    The n highest are found in the n groups of items with the highest maxima: one pass over all
    scores, several times faster than `torch.topk` of all.
    """
    n_groups = scores_UI.shape[1] // GROUP_SIZE
    if n_groups < 2 * n:
        return torch.topk(scores_UI, n, dim=1)
    # A group is every `n_groups`-th item; the last few items are in none, and always looked at.
    n_grouped = n_groups * GROUP_SIZE
    highest_UG = scores_UI[:, :n_grouped].view(-1, GROUP_SIZE, n_groups).amax(1)
    groups_UK = torch.topk(highest_UG, n, dim=1).indices
    members = torch.arange(0, n_grouped, n_groups, device=scores_UI.device)
    rest = torch.arange(n_grouped, scores_UI.shape[1], device=scores_UI.device)
    ids = torch.cat(
        [
            (groups_UK[:, :, None] + members).flatten(1),
            rest.expand(len(scores_UI), -1),
        ],
        dim=1,
    )
    values, places = torch.topk(scores_UI.gather(1, ids), n, dim=1)
    return values, ids.gather(1, places)


def _lowest_ids(scores_UI: Tensor, last_U1: Tensor, k: int) -> Tensor:
    """Return ids_UK of the scores above `last`, and the lowest ids among those equal to it."""
    is_above_UI = scores_UI > last_U1
    is_level_UI = scores_UI == last_U1
    room_U1 = k - is_above_UI.sum(1, keepdim=True)
    is_chosen_UI = is_above_UI | (
        is_level_UI & (is_level_UI.cumsum(1, dtype=torch.int32) <= room_U1)
    )
    return is_chosen_UI.nonzero()[:, 1].view(-1, k)
