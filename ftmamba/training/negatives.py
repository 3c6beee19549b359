"""Which items serve as negatives, and which must not.

Shapes: M positions, C positions of a chunk, B windows, T events, S negatives, K items of the user
with most, I items of the catalogue, N items of a step.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.kernels.softmax import Listed

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class NegativeSampler:
    """Draws items with known probabilities, each draw a pure function of the seed and its step.

    Attributes:
        log_q: (I,), natural log of each item's probability; minus infinity if it is never drawn.
    """

    def __init__(self, kind: str, counts_I: NDArray[np.generic], *, seed: int = 0) -> None:
        """Prepare the draws.

        Args:
            kind: `uniform`; `popularity`, by the items' counts; or `mixed`, half of each.
            counts_I: interactions of every item.
            seed: of the draws.

        Raises:
            ValueError: popularity is asked for and no item has an interaction.
        """
        counts_I = np.asarray(counts_I, np.float64)
        if kind != "uniform" and not counts_I.sum() > 0:
            raise ValueError(
                f"negatives {kind!r} are drawn by the items' counts, and all {len(counts_I)} are "
                "0; draw them 'uniform'"
            )
        even_I = np.full(len(counts_I), 1 / max(1, len(counts_I)))
        share = {"uniform": 0.0, "popularity": 1.0, "mixed": 0.5}[kind]
        popular_I = counts_I / counts_I.sum() if share else even_I
        q_I = even_I if not share else share * popular_I + (1 - share) * even_I
        self._seed = seed
        with np.errstate(divide="ignore"):
            self.log_q: Tensor = torch.from_numpy(np.log(q_I)).float()
        self._cumulative_I = np.cumsum(q_I)
        # So that rounding neither leads past the end nor to a last item that is never drawn.
        self._cumulative_I[np.flatnonzero(q_I)[-1] :] = np.inf

    def draw(self, rows: NDArray[np.int64], n_negatives: int, step: int) -> Tensor:
        """Draw items independently, each a pure function of the seed, the step and its row.

        So the negatives of an interaction are the same whichever rank holds it and wherever a run
        was resumed. The function is SplitMix64 (Steele et al., OOPSLA 2014) of a counter.

        Args:
            rows: (M,) number of each interaction in the training data.
            n_negatives: items to draw for each.
            step: optimizer step.

        Returns:
            Item ids (M, S), repeats and the targets themselves included.
        """
        state: np.uint64 = np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)[
            0
        ]
        with np.errstate(over="ignore"):
            columns = np.arange(1, n_negatives + 1, dtype=np.uint64)
            counter = rows.astype(np.uint64)[:, None] * np.uint64(n_negatives) + columns
            mixed: NDArray[np.uint64] = state + counter * np.uint64(GOLDEN_GAMMA)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
        numbers = (mixed >> np.uint64(11)) * 2.0**-53
        drawn = np.searchsorted(self._cumulative_I, numbers, side="right")
        return torch.from_numpy(drawn)


class KnownPositives:
    """The training items of each user."""

    def __init__(self, user_ids: Tensor, item_ids: Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.pairs = np.unique((user_ids * n_items + item_ids).numpy())

    def of_users(self, user_ids_B: Tensor) -> Tensor:
        """Return the distinct items (B, K) of users, ascending, padded with -1."""
        starts_B, ends_B = (
            np.searchsorted(self.pairs, (user_ids_B.numpy() + next_user) * self.n_items)
            for next_user in (0, 1)
        )
        steps_K = np.arange((ends_B - starts_B).max(initial=0))
        is_item_BK = steps_K < (ends_B - starts_B)[:, None]
        rows_BK = np.where(is_item_BK, starts_B[:, None] + steps_K, 0)
        return torch.from_numpy(np.where(is_item_BK, self.pairs[rows_BK] % self.n_items, -1))


@dataclass(frozen=True)
class SeenItems:
    """Items that a loss treats apart at each position, such as those of the history before it.

    Attributes:
        items: int64 (B, T), lists of items; -1 is none.
        lists: int64 (M,), which of them is a position's.
        lengths: int64 (M,), how many of its list count.
    """

    items: Tensor
    lists: Tensor
    lengths: Tensor

    def at(self, index: Tensor | slice) -> "SeenItems":
        """Return those of some positions."""
        return SeenItems(self.items, self.lists[index], self.lengths[index])

    def mask(self, n_items: int) -> Tensor:
        """Return which of the items each position has seen, bool (M, N)."""
        return Listed(self.items, self.lists, self.lengths).mask(n_items)

    def left_out(self, positions: slice, targets_C: Tensor) -> Listed:
        """Return a chunk's items as ones to leave out of a softmax; a target, seen or not, stays.

        Args:
            positions: which of the M positions these are.
            targets_C: int64, the item of the next interaction.
        """
        here = self.at(positions)
        return Listed(self.items, here.lists, here.lengths, kept=targets_C)

    def biased(self, positions: slice, bias: float) -> Listed:
        """Return a chunk's items as ones whose logits get a bias, once each."""
        here = self.at(positions)
        return Listed(self._distinct, here.lists, here.lengths, bias)

    @cached_property
    def _distinct(self) -> Tensor:
        """The items (B, T), -1 where one is on its list a second time."""
        sorted_BT, order_BT = self.items.sort(dim=1, stable=True)
        again_BT = torch.zeros_like(self.items, dtype=torch.bool)
        again_BT[:, 1:] = sorted_BT[:, 1:] == sorted_BT[:, :-1]
        return self.items.masked_fill(torch.zeros_like(again_BT).scatter(1, order_BT, again_BT), -1)
