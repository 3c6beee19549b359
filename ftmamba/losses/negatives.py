"""Which items serve as negatives, and which must not.

Shapes: B interactions, M negatives or items of the batch.
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
        self.pairs = torch.unique(user_ids * n_items + item_ids)

    def of_users(self, user_ids_B: Tensor) -> Tensor:
        """Return which items (B, I) each user has in training."""
        starts_B, ends_B = (
            torch.searchsorted(self.pairs, (user_ids_B + next_user) * self.n_items)
            for next_user in (0, 1)
        )
        counts_B = ends_B - starts_B
        rows = torch.repeat_interleave(torch.arange(len(user_ids_B)), counts_B)
        first_of_row = torch.repeat_interleave(counts_B.cumsum(0) - counts_B, counts_B)
        places = starts_B[rows] + torch.arange(len(rows)) - first_of_row
        known_BI = torch.zeros(len(user_ids_B), self.n_items, dtype=torch.bool)
        known_BI[rows, self.pairs[places] % self.n_items] = True
        return known_BI

    def contain(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """Return, for ids that broadcast, whether each user has each item in training."""
        wanted = user_ids * self.n_items + item_ids
        places = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        found: Tensor = self.pairs[places] == wanted
        return found
