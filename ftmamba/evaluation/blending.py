"""The blend: what counted interactions add to the scores of the towers, weighed on validation.

Shapes: U users, I items, B users of a block, K ranks, N neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions, ItemsByUser, items_by_user
from ftmamba.data.popularity import SECONDS_A_DAY
from ftmamba.evaluation.baselines import strongest
from ftmamba.evaluation.metrics import METRICS
from ftmamba.evaluation.protocol import EmbeddingScorer
from ftmamba.evaluation.splits import Split
from modeling_ftmamba.catalogue import Blend, top_k

N_NEIGHBOURS = 200
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PRIORS = (-0.2, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ZERO = PRIORS.index(0.0)
HALF_LIVES = (7, 14, 30, 90, None)
"""Days after which an interaction counts half in the popularity; None counts all alike."""

LEAST_COLD = 100
"""With fewer users without a history in validation, the histories of others are hidden."""

_GRID_SCORES_AT_ONCE = 2**20


class Counting(Protocol):
    """A counting model whose evidence is a sparse matrix of items."""

    @property
    def name(self) -> str: ...

    def neighbours(self, train: Interactions) -> Any:
        """Return the evidence E_ij (I, I) of an item i in the history for item j, CSR."""

    def history_shape(self) -> Mapping[str, Any]:
        """Return how `Blend` weighs the events of a history."""


class Asked(NamedTuple):
    """Users of validation, as a tower trained on the training part scores them.

    Attributes:
        user_ids: those of whom a score is known.
        towers: with their histories.
        hidden: the same users without any history; None where the model has none.
    """

    user_ids: NDArray[np.int64]
    towers: EmbeddingScorer
    hidden: EmbeddingScorer | None


@dataclass(frozen=True)
class BlendedScorer:
    """Scores of the towers and what a blend adds, as a checkpoint serves them; a `Scorer`.

    Attributes:
        towers: of the model.
        blend: of its catalogue.
        histories: each user's items, oldest first; None where the model reads no history.
    """

    towers: EmbeddingScorer
    blend: Blend
    histories: ItemsByUser | None

    def scores(self, user_ids: NDArray[np.int64]) -> Tensor:
        scores_UI = self.towers.scores(user_ids)
        added_UI = self.blend.added(_items_of(self.histories, user_ids))
        return scores_UI + torch.from_numpy(added_UI).to(scores_UI.device)


@dataclass(frozen=True)
class Blending:
    """What validation chose for the blend; `count` makes it of any interactions.

    Attributes:
        counting: the counting model; None where it does not help.
        half_life: of the popularity, days; None counts all alike.
        weight: of the evidence.
        popularity_weight: of the log popularity, for users with a history.
        cold_weight: of the same, for users without.
        metric: by which they were chosen.
        pure: the towers' metric on validation.
        blended: the metric with these weights.
    """

    counting: Counting | None
    half_life: int | None
    weight: float
    popularity_weight: float
    cold_weight: float
    metric: str
    pure: float
    blended: float

    def __str__(self) -> str:
        if self.is_pure:
            return "the towers alone: neither neighbours nor popularity help on validation"
        decay = "" if self.half_life is None else f" of half-life {self.half_life} days"
        return (
            f"the towers + {self.weight:g} x {self.counting or 'no neighbours'} + "
            f"{self.popularity_weight:g} x log popularity{decay} ({self.cold_weight:g} x without "
            f"a history); {self.metric} on validation {self.pure:.4f} -> {self.blended:.4f}"
        )

    @property
    def is_pure(self) -> bool:
        """Whether nothing is added to the towers."""
        return not (self.weight or self.popularity_weight or self.cold_weight)

    def count(self, interactions: Interactions, as_of: int | None) -> Blend:
        """Count the interactions before a time; None is the end of them."""
        popularity_I = log_popularity(interactions, self.half_life, as_of)
        if self.counting is None:
            return replace(no_neighbours(popularity_I), **self._weights())
        return replace(counted(self.counting, interactions, popularity_I), **self._weights())

    def _weights(self) -> dict[str, Any]:
        names = ("weight", "popularity_weight", "cold_weight")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        counting = None if self.counting is None else str(self.counting)
        validation = {"metric": self.metric, "pure": self.pure, "blended": self.blended}
        facts = {"counting": counting, "half_life": self.half_life, **self._weights()}
        return {"words": str(self), **facts, "validation": validation}


def log_popularity(
    interactions: Interactions, half_life: int | None, as_of: int | None
) -> NDArray[np.float32]:
    """Return log(1 + count) of each item (I,) before a time; with a half-life of days, decayed."""
    weight_R = None
    if half_life is not None and interactions.times is not None:
        until = int(interactions.times.max()) + 1 if as_of is None else as_of
        age_R = (until - interactions.times) / SECONDS_A_DAY
        weight_R = np.where(age_R > 0, 0.5 ** (age_R.clip(min=0) / half_life), 0.0)
    counts_I = np.bincount(interactions.item_ids, weight_R, interactions.n_items)
    return np.log1p(counts_I).astype(np.float32)


def no_neighbours(popularity_I: NDArray[np.float32]) -> Blend:
    """Return a blend of popularity alone."""
    none = np.zeros(0, np.float32)
    return Blend(np.zeros(len(popularity_I) + 1, np.int64), none.astype(np.int32), none,
                 popularity_I)  # fmt: skip


def counted(
    counting: Counting, interactions: Interactions, popularity_I: NDArray[np.float32]
) -> Blend:
    """Return a blend with weight 1 of the highest evidence for each item."""
    evidence_II = strongest(counting.neighbours(interactions).tocsr(), N_NEIGHBOURS)
    return Blend(
        evidence_II.indptr.astype(np.int64),
        evidence_II.indices.astype(np.int32),
        evidence_II.data.astype(np.float32),
        popularity_I,
        weight=1.0,
        **counting.history_shape(),
    )


def choose_blend(
    asked: Asked, split: Split, candidates: Sequence[Counting], *, mask_seen: bool, metric: str
) -> Blending:
    """Choose counting model, half-life and weights by the metric on validation."""
    hidden = asked.hidden
    is_warm_U = np.isin(asked.user_ids, split.train.user_ids) & (hidden is not None)
    grid = _Grid(split, mask_seen, metric)
    warm = asked.user_ids[is_warm_U], asked.towers
    cold = asked.user_ids[~is_warm_U], asked.towers
    is_hidden = hidden is not None and len(cold[0]) < LEAST_COLD
    if hidden is not None and is_hidden:
        # What a person without a history is served, asked of those who have one.
        cold = warm[0], hidden
    until = split.validation_time
    # The last interactions of users are of many times: there is no moment to look back from.
    half_lives = (None,) if split.train.times is None or until is None else HALF_LIVES
    popularity = {life: log_popularity(split.train, life, until) for life in half_lives}
    pure_U = grid.values(*warm, no_neighbours(popularity[None]))[0, 0]
    best_U, counting = pure_U, None
    blends = {one: counted(one, split.train, popularity[None]) for one in candidates}
    for one, blend in blends.items():
        values_WU = grid.values(*warm, blend, weights=WEIGHTS)[:, 0]
        found_U = values_WU[values_WU.mean(-1).argmax()]
        if found_U.mean() > best_U.mean():
            best_U, counting = found_U, one
    weights = (0.0,) if counting is None else WEIGHTS
    blend = no_neighbours(popularity[None]) if counting is None else blends[counting]
    rows_LP, warm_LPU, cold_LPU = [], [], []
    for popularity_I in popularity.values():
        blend = replace(blend, log_popularity=popularity_I)
        values_WPU = grid.values(*warm, blend, weights=weights, priors=PRIORS)
        rows_LP.append(values_WPU.mean(-1).argmax(0))
        warm_LPU.append(values_WPU[rows_LP[-1], range(len(PRIORS))])
        cold_LPU.append(grid.values(*cold, no_neighbours(popularity_I), priors=PRIORS)[0])
    # Popularity drifts, and weights are fitted to one stretch of it: of what is about as good,
    # the shortest half-life and the least weights are taken.
    best_LU = [
        np.concatenate([part[part.mean(-1).argmax()] for part in parts])
        for parts in zip(warm_LPU, cold_LPU, strict=True)
    ]
    life = first_as_good(np.stack(best_LU), range(len(half_lives)))
    least_first = sorted(range(len(PRIORS)), key=lambda one: abs(PRIORS[one]))
    warm_PU, cold_PU = warm_LPU[life], cold_LPU[life]
    column, of_cold = (first_as_good(values, least_first) for values in (warm_PU, cold_PU))
    asked_PU = cold_PU[:, :0] if is_hidden else cold_PU
    pure = float(np.concatenate([pure_U, asked_PU[ZERO]]).mean())
    blended = float(np.concatenate([warm_PU[column], asked_PU[of_cold]]).mean())
    weight = weights[rows_LP[life][column]]
    priors = PRIORS[column], PRIORS[of_cold]
    chosen = counting if weight else None
    return Blending(chosen, half_lives[life], weight, *priors, metric, pure, blended)


def first_as_good(values_NU: NDArray[np.float64], order: Sequence[int]) -> int:
    """Return the first of an order whose mean is at most a standard error below the best."""
    best = int(values_NU.mean(1).argmax())
    for one in order:
        loss_U = values_NU[best] - values_NU[one]
        if loss_U.mean() <= loss_U.std() / max(1, len(loss_U)) ** 0.5:
            return one
    return best


class _Grid:
    """A metric of users of validation for each weight of evidence and of popularity."""

    def __init__(self, split: Split, mask_seen: bool, metric: str) -> None:
        name, _, k = metric.partition("@")
        self._metric, self._k = METRICS[name], int(k)
        self._n_items = split.validation.n_items
        self._masked = items_by_user(split.train) if mask_seen else None
        self._targets = items_by_user(split.validation)
        self._histories = histories_of(split.train).items

    def values(
        self,
        user_ids: NDArray[np.int64],
        towers: EmbeddingScorer,
        blend: Blend,
        weights: Sequence[float] = (0.0,),
        priors: Sequence[float] = (0.0,),
    ) -> NDArray[np.float64]:
        """Return the metric (weights, priors, U)."""
        values = np.zeros((len(weights), len(priors), len(user_ids)))
        popularity_I = torch.from_numpy(blend.log_popularity)
        step = max(1, _GRID_SCORES_AT_ONCE // self._n_items)
        for start in range(0, len(user_ids), step):
            users_B = user_ids[start : start + step]
            scores_BI = towers.scores(users_B).cpu()
            if self._masked is not None:
                rows, items = self._masked.pairs(users_B)
                scores_BI[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
            is_target_BI = torch.zeros(scores_BI.shape, dtype=torch.bool)
            rows, items = self._targets.pairs(users_B)
            is_target_BI[torch.from_numpy(rows), torch.from_numpy(items)] = True
            n_relevant_B = is_target_BI.sum(1).numpy()
            evidence_BI = torch.zeros(())
            if any(weights):
                only = replace(blend, popularity_weight=0.0, cold_weight=0.0, weight=1.0)
                evidence_BI = torch.from_numpy(only.added(_items_of(self._histories, users_B)))
            for row, weight in enumerate(weights):
                with_evidence = scores_BI + weight * evidence_BI if weight else scores_BI
                for column, prior in enumerate(priors):
                    total = with_evidence + prior * popularity_I if prior else with_evidence
                    ids_BK = top_k(total, self._k)[1]
                    hits_BK = is_target_BI.gather(1, ids_BK).numpy()
                    found_B = self._metric(hits_BK, n_relevant_B)
                    values[row, column, start : start + step] = found_B
        return values


def _items_of(
    histories: ItemsByUser | None, user_ids: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    if histories is None:
        return [np.zeros(0, np.int64)] * len(user_ids)
    return [histories.of(user) for user in user_ids]
