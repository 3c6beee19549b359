"""How often each item was chosen before a time, counted from the interactions, leak-free.

Shapes: R rows asked for, I items, W windows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions

SECONDS_A_DAY = 86_400


class PopularityHistory:
    """Counts the interactions of an item in the days before a time.

    A window of `days` days before t holds the times in [t - days, t): strictly before t, so an
    interaction never counts itself nor what happened in the same second.
    """

    def __init__(self, interactions: Interactions) -> None:
        if interactions.times is None:
            raise ValueError(
                "popularity needs the time of each interaction, and table 'interactions' has "
                "none; name its column as 'time' in the schema, or remove popularity_days"
            )
        times_R = interactions.times
        self.n_items = interactions.n_items
        self._first = int(times_R.min()) if len(times_R) else 0
        # Offsets from the first time lie in [0, span); one past the last is a legal query.
        self._span = (int(times_R.max()) - self._first if len(times_R) else 0) + 2
        if self.n_items * self._span >= 2**63:
            raise ValueError(
                f"interactions span {self._span} seconds over {self.n_items} items, more than one "
                "64-bit key can hold; check the unit of the time column"
            )
        self._keys = np.sort(self._key(interactions.item_ids, times_R))

    def columns(
        self, item_ids: NDArray[np.int64], times: NDArray[np.int64], days: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return ln(1 + count) of each item in the windows before a time of its own, (R, W)."""
        # Sorted queries walk the sorted keys in order, which is several times faster than hopping.
        ends_R = self._key(item_ids, times)
        order_R = np.argsort(ends_R)
        items_R, times_R = item_ids[order_R], times[order_R]
        before_R = np.searchsorted(self._keys, ends_R[order_R], side="left")
        columns_RW = np.empty((len(item_ids), len(days)), np.float32)
        for window, length in enumerate(days):
            starts_R = self._key(items_R, times_R - length * SECONDS_A_DAY)
            counts_R = before_R - np.searchsorted(self._keys, starts_R, side="left")
            columns_RW[order_R, window] = np.log1p(counts_R)
        return columns_RW

    def catalogue(self, as_of: int, days: Sequence[int]) -> NDArray[np.float32]:
        """Return ln(1 + count) of each window for every item as of one time, (I, W)."""
        item_ids = np.arange(self.n_items, dtype=np.int64)
        return self.columns(item_ids, np.full(self.n_items, as_of, dtype=np.int64), days)

    def _key(self, item_ids_R: NDArray[np.int64], times_R: NDArray[np.int64]) -> NDArray[np.int64]:
        offsets_R = np.clip(times_R - self._first, 0, self._span - 1)
        return item_ids_R * np.int64(self._span) + offsets_R
