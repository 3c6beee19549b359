"""Draws negatives from the whole catalogue.

Shapes: I items of the catalogue.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_ftmamba.configuration_ftmamba import near

NEGATIVES = ("uniform", "popularity", "mixed")
"""How negatives may be drawn."""


class NegativeSampler:
    """Draws items with known probabilities, each draw a pure function of the seed and its step.

    Attributes:
        kind: `uniform`; `popularity`, by the items' counts; or `mixed`, half of each.
        log_q: (I,), natural log of each item's probability; minus infinity if it is never drawn.
    """

    def __init__(self, kind: str, counts_I: NDArray[np.generic], *, seed: int = 0) -> None:
        """Prepare the draws.

        Args:
            kind: one of `NEGATIVES`.
            counts_I: interactions of every item.
            seed: of the draws.

        Raises:
            ValueError: an unknown kind, or popularity is asked for and no item has an interaction.
        """
        if kind not in NEGATIVES:
            raise ValueError(
                f"negatives must be one of {', '.join(NEGATIVES)}, got {kind!r}"
                f"{near(kind, NEGATIVES)}"
            )
        self.kind, self._seed, self._n_items = kind, seed, len(counts_I)
        counts_I = np.asarray(counts_I, np.float64)
        if kind != "uniform" and not counts_I.sum() > 0:
            raise ValueError(
                f"negatives {kind!r} are drawn by the items' counts, and all {len(counts_I)} are "
                "0; draw them 'uniform'"
            )
        even_I = np.full(len(counts_I), 1 / max(1, len(counts_I)))
        if kind == "uniform":
            self._q_I = even_I
        else:
            popular_I = counts_I / counts_I.sum()
            self._q_I = popular_I if kind == "popularity" else (popular_I + even_I) / 2
        with np.errstate(divide="ignore"):
            self.log_q: Tensor = torch.from_numpy(np.log(self._q_I)).float()

    def draw(self, shape: Sequence[int], step: int, rank: int = 0) -> Tensor:
        """Return int64 item ids, independent draws with repeats."""
        generator = np.random.default_rng((self._seed, step, rank))
        if self.kind == "uniform":
            return torch.from_numpy(generator.integers(self._n_items, size=tuple(shape)))
        drawn = np.searchsorted(self._cumulative, generator.random(tuple(shape)), side="right")
        return torch.from_numpy(drawn)

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        cumulative_I = np.cumsum(self._q_I)
        # So that rounding neither leads past the end nor to a last item that is never drawn.
        last = np.flatnonzero(self._q_I)[-1]
        cumulative_I[last:] = np.inf
        return cumulative_I
