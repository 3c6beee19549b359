"""One function that evaluates any model.

Shapes: U users (of a block, or all), I items, K places, R interactions.
"""

from collections.abc import Mapping
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.interactions import Interactions, ItemsByUser, items_by_user
from ftmamba.evaluation.inner_products import USERS_AT_ONCE
from ftmamba.evaluation.metrics import METRICS
from ftmamba.evaluation.protocol import EmbeddingScorer, Protocol, Scorer
from ftmamba.evaluation.result import Evaluation
from modeling_ftmamba.ranking import top_k

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

    A test item that is masked because the user took it before cannot be recommended and counts as
    missed. Memory is bounded by the block of users, whose size does not change the result.

    Args:
        scorer: the fitted model.
        test: the interactions to be foretold; repeated pairs count once.
        seen: the interactions that were known: what is masked, what popularity ranks count, and
            who is a warm user.
        protocol: by default k = 5 and 10, seen items masked.
        users_per_block: by default as many as are fast and take little memory.

    Raises:
        ValueError: k is larger than the catalogue, no test interaction, no `seen` to mask, or
            scores that are NaN or of another shape.
    """
    protocol = protocol or Protocol()
    _check(test, seen, protocol)
    masked = items_by_user(seen) if seen is not None and protocol.mask_seen else None
    keys_R = np.unique(test.user_ids * test.n_items + test.item_ids)
    user_ids_U, n_relevant_U = np.unique(keys_R // test.n_items, return_counts=True)
    step = users_per_block or _users_at_once(scorer, test.n_items, protocol.k[-1])
    blocks = [user_ids_U[start : start + step] for start in range(0, len(user_ids_U), step)]
    recommended_UK = np.concatenate(
        [_recommend(scorer, block, test.n_items, masked, protocol.k[-1]) for block in blocks]
    )
    hits_UK = _hits(recommended_UK, user_ids_U, keys_R, test.n_items)
    per_user = {
        f"{name}@{k}": metric(hits_UK[:, :k], n_relevant_U)
        for k in protocol.k
        for name, metric in METRICS.items()
    }
    if seen is not None:
        per_user |= _popularity_ranks(recommended_UK, seen, protocol.k)
    return Evaluation(
        user_ids_U,
        per_user,
        recommended_UK,
        _is_warm(user_ids_U, seen),
        np.zeros(len(user_ids_U), np.int64),
        test.n_items,
        protocol,
    )


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


def _users_at_once(scorer: Scorer, n_items: int, k: int) -> int:
    if _is_searchable(scorer, n_items, k):
        return USERS_AT_ONCE
    return max(1, N_SCORES_AT_ONCE // n_items)


def _is_searchable(scorer: Scorer, n_items: int, k: int) -> TypeGuard[EmbeddingScorer]:
    return (
        isinstance(scorer, EmbeddingScorer)
        and len(scorer.items) == n_items
        and scorer.has_first_places(k)
    )


def _recommend(
    scorer: Scorer,
    user_ids_U: NDArray[np.int64],
    n_items: int,
    masked: ItemsByUser | None,
    k: int,
) -> NDArray[np.int64]:
    """Return the items_UK at the first k places, -1 where nothing is left to recommend."""
    if not _is_searchable(scorer, n_items, k):
        return _recommend_by_scores(scorer, user_ids_U, n_items, masked, k)
    none = np.empty(0, np.int64)
    hidden = (none, none) if masked is None else masked.pairs(user_ids_U)
    recommended_UK, is_known_U = scorer.first_places(user_ids_U, k, hidden)
    step = max(1, N_SCORES_AT_ONCE // n_items)
    rest = np.flatnonzero(~is_known_U)
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
    scores_UI = _own_tensor(scorer.scores(user_ids_U))
    if tuple(scores_UI.shape) != (len(user_ids_U), n_items):
        raise ValueError(
            f"{_name(scorer)} must give a score to each of {len(user_ids_U)} users and {n_items} "
            f"items, got shape {tuple(scores_UI.shape)}"
        )
    if bool(scores_UI.amax(1).isnan().any()):
        raise ValueError(_nan_message(scorer, scores_UI, user_ids_U))
    if masked is not None:
        rows_R, items_R = (torch.from_numpy(x) for x in masked.pairs(user_ids_U))
        scores_UI[rows_R.to(scores_UI.device), items_R.to(scores_UI.device)] = -torch.inf
    values_UK, ids_UK = top_k(scores_UI, k)
    recommended: NDArray[np.int64] = ids_UK.masked_fill(values_UK == -torch.inf, -1).cpu().numpy()
    return recommended


def _nan_message(scorer: Scorer, scores_UI: Tensor, user_ids_U: NDArray[np.int64]) -> str:
    places = scores_UI.isnan().nonzero()
    row, item = places[0].tolist()
    return (
        f"{_name(scorer)} gave NaN for {len(places)} of {scores_UI.numel()} scores, first for user "
        f"{user_ids_U[row]} and item {item}; the model has diverged or reads NaN features"
    )


def _own_tensor(scores: NDArray[np.float32] | Tensor) -> Tensor:
    """Return a copy of the scores that may be written to, of a type that holds minus infinity."""
    owned = scores.detach().clone() if isinstance(scores, Tensor) else torch.tensor(scores)
    if not owned.is_floating_point():
        return owned.double()
    return owned if owned.element_size() >= 4 else owned.float()


def _name(scorer: Scorer) -> str:
    return f"scorer {getattr(scorer, 'name', type(scorer).__name__)!r}"


def _hits(
    recommended_UK: NDArray[np.int64],
    user_ids_U: NDArray[np.int64],
    keys_R: NDArray[np.int64],
    n_items: int,
) -> NDArray[np.bool_]:
    """Say which recommended items are test items; `keys_R` is sorted user * n_items + item."""
    wanted_UK = user_ids_U[:, None] * n_items + recommended_UK
    places_UK = np.searchsorted(keys_R, wanted_UK).clip(max=len(keys_R) - 1)
    hits_UK: NDArray[np.bool_] = (keys_R[places_UK] == wanted_UK) & (recommended_UK >= 0)
    return hits_UK


def _is_warm(user_ids_U: NDArray[np.int64], seen: Interactions | None) -> NDArray[np.bool_]:
    if seen is None:
        return np.ones(len(user_ids_U), bool)
    return np.bincount(seen.user_ids, minlength=seen.n_users)[user_ids_U] > 0


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
