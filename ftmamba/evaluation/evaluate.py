"""One function that evaluates any model.

Shapes: U users (of a block, or all), I items, K ranks, R interactions.
"""

from collections.abc import Mapping
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions, ItemsByUser, items_by_user
from ftmamba.evaluation.inner_products import USERS_AT_ONCE
from ftmamba.evaluation.metrics import METRICS
from ftmamba.evaluation.protocol import EmbeddingScorer, Protocol, Scorer
from ftmamba.evaluation.result import NONE_HIDDEN, Evaluation, Unreachable
from modeling_ftmamba.catalogue import top_k

N_SCORES_AT_ONCE = 2**24


def evaluate(
    scorer: Scorer,
    *,
    test: Interactions,
    seen: Interactions | None = None,
    protocol: Protocol | None = None,
    users_per_block: int | None = None,
) -> Evaluation:
    """Rank the whole catalogue for every user who has a test interaction.

    A test item that is masked because the user has seen it cannot be recommended, counts as missed
    and is counted as `unreachable`. Memory is bounded by the block of users, whose size does not
    change the result.

    Args:
        scorer: the fitted model.
        test: the interactions to predict; repeated pairs count once.
        seen: the interactions before them: their items are masked, popularity ranks count them, and
            their users are warm.
        protocol: by default k = 5 and 10, seen items masked.
        users_per_block: by default as many as are fast and take little memory.

    Raises:
        ValueError: k is larger than the catalogue, no test interaction, no `seen` to mask, or
            scores that are NaN or of another shape.
    """
    protocol = protocol or Protocol()
    _check(test, seen, protocol)
    n_items, k = test.n_items, protocol.k[-1]
    masked = items_by_user(seen) if seen is not None and protocol.mask_seen else None
    keys_R = np.unique(test.user_ids * n_items + test.item_ids)
    user_ids_U, n_relevant_U = np.unique(keys_R // n_items, return_counts=True)
    default = USERS_AT_ONCE if _can_search(scorer, n_items, k) else _n_users_at_once(n_items)
    step = users_per_block or default
    recommended_UK = np.concatenate(
        [
            _recommend(scorer, user_ids_U[start : start + step], n_items, masked, k)
            for start in range(0, len(user_ids_U), step)
        ]
    )
    hits_UK = _hits(recommended_UK, user_ids_U, keys_R, n_items)
    per_user = {
        f"{name}@{k}": metric(hits_UK[:, :k], n_relevant_U)
        for k in protocol.k
        for name, metric in METRICS.items()
    }
    is_warm_U = np.ones(len(user_ids_U), bool)
    if seen is not None:
        per_user |= _popularity_ranks(recommended_UK, seen, protocol.k)
        is_warm_U = np.isin(user_ids_U, seen.user_ids)
    split_ids_U = np.zeros(len(user_ids_U), np.int64)
    hidden = NONE_HIDDEN if masked is None else _unreachable(keys_R, user_ids_U, masked, n_items)
    return Evaluation(
        user_ids_U, per_user, recommended_UK, is_warm_U, split_ids_U, n_items, protocol, hidden
    )


def unreachable(wanted: Interactions, seen: Interactions) -> Unreachable:
    """Count the items to predict that their users have seen."""
    n_items = wanted.n_items
    keys_R = np.unique(wanted.user_ids * n_items + wanted.item_ids)
    return _unreachable(keys_R, np.unique(wanted.user_ids), items_by_user(seen), n_items)


def _unreachable(
    keys_R: NDArray[np.int64], user_ids_U: NDArray[np.int64], masked: ItemsByUser, n_items: int
) -> Unreachable:
    """Count them; `keys_R` is sorted user * n_items + item, of the users `user_ids_U`."""
    rows, item_ids = masked.pairs(user_ids_U)
    is_seen_R = np.isin(keys_R, user_ids_U[rows] * n_items + item_ids)
    user_R = np.searchsorted(user_ids_U, keys_R // n_items)
    n_reachable_U = np.bincount(user_R, ~is_seen_R)
    return Unreachable(int(is_seen_R.sum()), len(keys_R), int((n_reachable_U == 0).sum()))


def _check(test: Interactions, seen: Interactions | None, protocol: Protocol) -> None:
    if not len(test):
        raise ValueError("there is no test interaction to evaluate on; choose another split")
    if protocol.k[-1] > test.n_items:
        raise ValueError(
            f"k={protocol.k[-1]} is larger than the catalogue of {test.n_items} items; "
            "ask for a smaller k"
        )
    if protocol.mask_seen and seen is None:
        raise ValueError(
            "the protocol masks seen items, but `seen` is missing; give the training interactions "
            "or choose mask_seen=False"
        )
    if seen is not None and (seen.n_users, seen.n_items) != (test.n_users, test.n_items):
        raise ValueError(
            "test and seen interactions must be of the same tables, got "
            f"{test.n_users} users x {test.n_items} items and {seen.n_users} x {seen.n_items}"
        )


def _n_users_at_once(n_items: int) -> int:
    return max(1, N_SCORES_AT_ONCE // n_items)


def _can_search(scorer: Scorer, n_items: int, k: int) -> TypeGuard[EmbeddingScorer]:
    return (
        isinstance(scorer, EmbeddingScorer)
        and len(scorer.items) == n_items
        and scorer.can_search(k)
    )


def _recommend(
    scorer: Scorer,
    user_ids_U: NDArray[np.int64],
    n_items: int,
    masked: ItemsByUser | None,
    k: int,
) -> NDArray[np.int64]:
    """Return the items_UK of the first k ranks, -1 where nothing is left to recommend."""
    if not _can_search(scorer, n_items, k):
        return _recommend_by_scores(scorer, user_ids_U, n_items, masked, k)
    none = np.empty(0, np.int64)
    pairs = (none, none) if masked is None else masked.pairs(user_ids_U)
    recommended_UK, is_sure_U = scorer.top_items(user_ids_U, k, pairs)
    step = _n_users_at_once(n_items)
    rest = np.flatnonzero(~is_sure_U)
    for start in range(0, len(rest), step):
        rows = rest[start : start + step]
        recommended_UK[rows] = _recommend_by_scores(scorer, user_ids_U[rows], n_items, masked, k)
    return recommended_UK


def _recommend_by_scores(
    scorer: Scorer,
    user_ids_U: NDArray[np.int64],
    n_items: int,
    masked: ItemsByUser | None,
    k: int,
) -> NDArray[np.int64]:
    name = f"scorer {getattr(scorer, 'name', type(scorer).__name__)!r}"
    given = scorer.scores(user_ids_U)
    # A copy that may be written to, of a type that holds minus infinity.
    scores_UI = given.detach().clone() if isinstance(given, torch.Tensor) else torch.tensor(given)
    if not scores_UI.is_floating_point():
        scores_UI = scores_UI.double()
    if tuple(scores_UI.shape) != (len(user_ids_U), n_items):
        raise ValueError(
            f"{name} must give a score to each of {len(user_ids_U)} users and {n_items} items, "
            f"got shape {tuple(scores_UI.shape)}"
        )
    if bool(scores_UI.amax(1).isnan().any()):
        indices = scores_UI.isnan().nonzero()
        row, item = indices[0].tolist()
        raise ValueError(
            f"{name} gave NaN for {len(indices)} of {scores_UI.numel()} scores, first for user "
            f"{user_ids_U[row]} and item {item}; the model has diverged or reads NaN features"
        )
    if masked is not None:
        rows_R, items_R = (torch.from_numpy(x) for x in masked.pairs(user_ids_U))
        scores_UI[rows_R.to(scores_UI.device), items_R.to(scores_UI.device)] = -torch.inf
    values_UK, ids_UK = top_k(scores_UI, k)
    recommended: NDArray[np.int64] = ids_UK.masked_fill(values_UK == -torch.inf, -1).cpu().numpy()
    return recommended


def _hits(
    recommended_UK: NDArray[np.int64],
    user_ids_U: NDArray[np.int64],
    keys_R: NDArray[np.int64],
    n_items: int,
) -> NDArray[np.bool_]:
    """Return which recommended items are test items; `keys_R` is sorted user * n_items + item."""
    wanted_UK = user_ids_U[:, None] * n_items + recommended_UK
    indices_UK = np.searchsorted(keys_R, wanted_UK).clip(max=len(keys_R) - 1)
    hits_UK: NDArray[np.bool_] = (keys_R[indices_UK] == wanted_UK) & (recommended_UK >= 0)
    return hits_UK


def _popularity_ranks(
    recommended_UK: NDArray[np.int64], seen: Interactions, ks: tuple[int, ...]
) -> Mapping[str, NDArray[np.float64]]:
    """Return the mean popularity rank of each user's list; an empty list has the middle rank."""
    counts_I = np.bincount(seen.item_ids, minlength=seen.n_items)
    _, level_I, sizes = np.unique(-counts_I, return_inverse=True, return_counts=True)
    rank_I = (np.cumsum(sizes) - (sizes - 1) / 2)[level_I]
    is_item_UK = recommended_UK >= 0
    rank_UK = np.where(is_item_UK, rank_I[recommended_UK], 0.0)
    ranks = {}
    for k in ks:
        n_listed_U = is_item_UK[:, :k].sum(1)
        mean_U = rank_UK[:, :k].sum(1) / np.maximum(n_listed_U, 1)
        ranks[f"popularity_rank@{k}"] = np.where(n_listed_U > 0, mean_U, (seen.n_items + 1) / 2)
    return ranks
