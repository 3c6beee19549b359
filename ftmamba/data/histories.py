"""Each user's interactions in order, ready to be cut off before any event.

Shapes: B rows asked about, T events of the longest history among them, F event features, R
interactions, U users.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions, ItemsByUser, items_by_user
from ftmamba.data.schema import suggestion
from modeling_ftmamba.configuration_ftmamba import HISTORY, SMALLEST_SCALE, Column
from modeling_ftmamba.processing_ftmamba import EventTable

_AS_IT_IS = (0.0, 1.0)
"""The scale of an event feature that the model reads as it is."""


@dataclass(frozen=True, eq=False)
class Events:
    """Events of some users, oldest first, padded on the right.

    Attributes:
        item_ids: int64 (B, T); 0 beyond the end.
        lengths: int64 (B,), how many events of a row count.
        times: int64 (B, T), or None where the interactions have no time.
        features: float32 (B, T, F), the numbers asked for; NaN where one is missing.
    """

    item_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    times: NDArray[np.int64] | None
    features: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Histories:
    """Interactions by user, each user's in order of time, those of one second as the file has them.

    Without times the order of the file is the order; where not even that is one, the events of a
    user are a set, and `reordered` draws another order. Repeated events stay, each where it was.

    Attributes:
        items: user u has the events `items.starts[u]` up to `items.starts[u + 1]`.
        events: times, gaps, weights and context of the same events.
        rows: int64 (R,), the number of each event among the interactions as given.
        is_ordered: whether the order of a user's events says anything.
    """

    items: ItemsByUser
    events: EventTable
    rows: NDArray[np.int64]
    is_ordered: bool = True

    @property
    def n_users(self) -> int:
        return len(self.items.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Events of each user (U,)."""
        return np.diff(self.items.starts)

    @cached_property
    def n_earlier(self) -> NDArray[np.int64]:
        """For each interaction as given (R,), how many events of its user precede it."""
        n_earlier_R = np.empty_like(self.rows)
        n_earlier_R[self.rows] = np.arange(len(self.rows)) - np.repeat(
            self.items.starts[:-1], self.counts
        )
        return n_earlier_R

    def reordered(self, generator: np.random.Generator) -> "Histories":
        """Return the same events, each user's in an order drawn at random."""
        users_R = np.repeat(np.arange(self.n_users), self.counts)
        order_R = np.lexsort((generator.random(len(users_R)), users_R))
        times, weights = (
            None if values is None else values[order_R]
            for values in (self.events.times, self.events.weights)
        )
        context = {name: values[order_R] for name, values in self.events.context.items()}
        return Histories(
            ItemsByUser(self.items.starts, self.items.item_ids[order_R]),
            EventTable(self.items.starts, times, weights, context),
            self.rows[order_R],
            self.is_ordered,
        )

    def newest(
        self,
        user_ids: NDArray[np.int64],
        max_length: int,
        *,
        features: Sequence[str] = (),
        before: NDArray[np.int64] | int | None = None,
        n_first: NDArray[np.int64] | None = None,
    ) -> Events:
        """Return the newest events of users, at most so many.

        Args:
            user_ids: (B,), repeats allowed.
            max_length: events kept of each, the newest.
            features: names of the numbers wanted beside each event; missing everywhere where they
                are gaps or weights that the interactions do not have.
            before: UTC seconds, one for all or (B,): only events strictly before count, so an
                event at that very second, such as the one to be predicted, is never among them.
            n_first: (B,): only each user's first so many events count. With `n_earlier` of
                interactions, what came before each of these: the way where there are no times.

        Raises:
            ValueError: an unknown feature, or `before` and the interactions have no time.
        """
        if max_length < 0:
            raise ValueError(f"max_length must be >= 0, got {max_length}")
        starts_B = self.items.starts[user_ids]
        ends_B = self.items.starts[user_ids + 1]
        if before is not None:
            ends_B = self._first_at(starts_B, ends_B, before)
        if n_first is not None:
            ends_B = starts_B + np.minimum(ends_B - starts_B, n_first)
        starts_B = np.maximum(starts_B, ends_B - max_length)
        return self.stretches(starts_B, ends_B - starts_B, features)

    def newest_items(self, max_length: int) -> ItemsByUser:
        """Return the items of every user's newest events, at most so many of each."""
        kept_U = np.minimum(self.counts, max_length)
        is_kept_R = np.arange(len(self.items.item_ids)) >= np.repeat(
            self.items.starts[1:] - kept_U, self.counts
        )
        starts = np.concatenate([[0], np.cumsum(kept_U)])
        return ItemsByUser(starts, self.items.item_ids[is_kept_R])

    def stretches(
        self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64], features: Sequence[str]
    ) -> Events:
        """Return stretches of neighbouring events, by the index of the first and how many."""
        padded = self.events.padded(starts_B, lengths_B, features)
        times_R = self.events.times
        return Events(
            padded.of(self.items.item_ids),
            lengths_B,
            None if times_R is None else padded.of(times_R),
            padded.features,
        )

    def _first_at(
        self,
        starts_B: NDArray[np.int64],
        ends_B: NDArray[np.int64],
        before: NDArray[np.int64] | int,
    ) -> NDArray[np.int64]:
        """Return the index of the first event at `before` or later, by bisection of all rows."""
        times_R = self.events.times
        if times_R is None:
            raise ValueError(
                "histories before a time need the time of every interaction, but the interactions "
                "have none; name their time column in the schema, or cut by n_first"
            )
        low_B, high_B = starts_B.copy(), ends_B.copy()
        while (low_B < high_B).any():
            middle_B = (low_B + high_B) // 2
            is_open_B = low_B < high_B
            is_earlier_B = is_open_B & (times_R[np.where(is_open_B, middle_B, 0)] < before)
            low_B = np.where(is_earlier_B, middle_B + 1, low_B)
            high_B = np.where(is_open_B & ~is_earlier_B, middle_B, high_B)
        return low_B


def histories_of(interactions: Interactions) -> Histories:
    """Put each user's interactions in order."""
    keys = [interactions.user_ids]
    if interactions.times is not None:
        keys.insert(0, interactions.times)
    order_R = np.lexsort(keys)
    ordered = interactions.select(order_R)
    items = items_by_user(ordered)
    events = EventTable(items.starts, ordered.times, ordered.weights, ordered.context)
    return Histories(items, events, order_R, interactions.is_ordered)


def with_event_scales(columns: Iterable[Column], train: Interactions) -> tuple[Column, ...]:
    """Return a tower's columns, the scales of the numbers beside a history's events fitted.

    A history without columns of the interactions beside its events stays as it is.

    Args:
        columns: of the users.
        train: the training interactions, each of which counts once.

    Raises:
        ValueError: the history names a column that the interactions do not have.
    """
    return tuple(
        replace(column, event_scales=_scales(column, train))
        if column.kind == HISTORY and column.context
        else column
        for column in columns
    )


def _scales(history: Column, train: Interactions) -> tuple[tuple[float, float], ...]:
    """Return mean and standard deviation of each event feature; the latter 1 of equals."""
    scales = []
    for name in history.event_features:
        if name not in history.context:
            scales.append(_AS_IT_IS)
            continue
        if name not in train.context:
            raise ValueError(
                f"event_features of column {history.name!r} name {name!r}, of which the training "
                f"interactions have no numbers{suggestion(name, train.context, 'they have')}; load "
                "them with the schema that names it"
            )
        known = train.context[name].astype(np.float64)
        known = known[~np.isnan(known)]
        deviation = float(known.std()) if len(known) and known.min() < known.max() else 1.0
        mean = float(known.mean()) if len(known) else 0.0
        scales.append((mean, deviation if deviation >= SMALLEST_SCALE else 1.0))
    return tuple(scales)
