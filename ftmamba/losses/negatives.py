"""Which items serve as negatives, and which must not.

Shapes: B interactions, M negatives or items of the batch, I distinct ones of these, P pairs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform_negatives(
    rows: NDArray[np.int64], n_negatives: int, *, n_items: int, seed: Sequence[int]
) -> NDArray[np.int64]:
    """Draw items uniformly, each a pure function of the seed, the row and its place.

    So the negatives of an interaction are the same whichever rank holds it and wherever a run
    was resumed. The function is SplitMix64 (Steele et al., OOPSLA 2014) of a counter.

    Args:
        rows: (B,) row number of each interaction in the training data.
        n_negatives: items to draw for each.
        n_items: size of the catalogue.
        seed: numbers that name the draw, such as the run's seed and the step.

    Returns:
        Item ids (B, M), repeats and the positives themselves included.
    """
    state: np.uint64 = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        places = np.arange(n_negatives, dtype=np.uint64)
        counter = rows.astype(np.uint64)[:, None] * np.uint64(n_negatives) + places
        mixed: NDArray[np.uint64] = state + (counter + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    drawn: NDArray[np.int64] = (mixed % np.uint64(n_items)).astype(np.int64)
    return drawn


class KnownPositives:
    """The pairs of the training interactions, to ask whether a user already has an item."""

    def __init__(self, user_ids: Tensor, item_ids: Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.pairs = np.unique((user_ids * n_items + item_ids).numpy())

    def among(self, user_ids_B: Tensor, item_ids_M: Tensor) -> Tensor:
        """Return which of the items (B, M) each user has in training.

        Costs as many look-ups as the users have pairs, not B M.
        """
        starts_B, ends_B = (
            np.searchsorted(self.pairs, (user_ids_B.numpy() + next_user) * self.n_items)
            for next_user in (0, 1)
        )
        counts_B = ends_B - starts_B
        rows_P = np.repeat(np.arange(len(user_ids_B)), counts_B)
        firsts_P = np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
        pairs_P = self.pairs[starts_B[rows_P] + np.arange(len(rows_P)) - firsts_P]
        distinct_I, place_M = np.unique(item_ids_M.numpy(), return_inverse=True)
        place_P, is_there_P = _places(distinct_I, pairs_P % self.n_items)
        known_BI = np.zeros((len(user_ids_B), len(distinct_I)), bool)
        known_BI[rows_P[is_there_P], place_P[is_there_P]] = True
        if np.array_equal(distinct_I, item_ids_M):
            return torch.from_numpy(known_BI)
        return torch.from_numpy(known_BI[:, place_M])

    def contain(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """Return, for ids that broadcast, whether each user has each item in training."""
        _, found = _places(self.pairs, (user_ids * self.n_items + item_ids).numpy())
        return torch.from_numpy(found)


def _places(
    ascending: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each wanted number is among the ascending ones, and whether it is there."""
    places = np.searchsorted(ascending, wanted)
    if not len(ascending):
        return places, np.zeros(wanted.shape, bool)
    places = places.clip(max=len(ascending) - 1)
    return places, ascending[places] == wanted
