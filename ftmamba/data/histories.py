"""What every user took, in order, ready to be cut off before any event.

Shapes: B rows asked about, T events of the longest history among them, F event features, R
interactions, U users.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions, ItemsByUser, items_by_user
from ftmamba.data.schema import suggestion
from modeling_ftmamba.columns import HISTORY, SMALLEST_SCALE, Column, near

_AS_IT_IS = (0.0, 1.0)
"""The scale of an event feature that the model reads as it is."""


@dataclass(frozen=True, eq=False)
class Events:
    """Events of some users, oldest first, padded on the right.

    Attributes:
        item_ids: int64 (B, T); 0 beyond the end.
        lengths: int64 (B,), how many events of a row count.
        times: int64 (B, T), or None where the interactions have no time.
        gaps: float32 (B, T), log(1 + seconds since the user's event before), be it among the row's
            events or not; 0 for the user's first event; None without times.
        weights: float32 (B, T), or None where the interactions have no weight.
        context: float32 (B, T), the further columns of the interactions by name; NaN means missing.
    """

    item_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    times: NDArray[np.int64] | None
    gaps: NDArray[np.float32] | None
    weights: NDArray[np.float32] | None
    context: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def features(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return the named numbers (B, T, F) of each event; NaN where one is missing.

        Gaps and weights are missing everywhere where the interactions have no times or no weights.

        Raises:
            ValueError: an unknown name.
        """
        known = {"gap": self.gaps, "weight": self.weights, **self.context}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"event_features must be among {', '.join(known)}, what the interactions have, "
                    f"got {name!r}{near(name, known)}"
                )
        features_BTF = np.full((*self.item_ids.shape, len(names)), np.nan, np.float32)
        for place, name in enumerate(names):
            values = known[name]
            if values is not None:
                features_BTF[:, :, place] = values
        return features_BTF


@dataclass(frozen=True, eq=False)
class Histories:
    """Interactions by user, each user's in order of time, those of one second as the file has them.

    Without times the order of the file is the order. Repeated events stay, each in its place.

    Attributes:
        items: user u has the events `items.starts[u]` up to `items.starts[u + 1]`.
        times: int64 (R,), of these events, or None.
        gaps: float32 (R,), as in `Events`, or None.
        weights: float32 (R,), or None.
        places: int64 (R,), for each interaction as given: how many events of its user precede it.
        context: float32 (R,), as in `Events`.
    """

    items: ItemsByUser
    times: NDArray[np.int64] | None
    gaps: NDArray[np.float32] | None
    weights: NDArray[np.float32] | None
    places: NDArray[np.int64]
    context: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def n_users(self) -> int:
        return len(self.items.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Events of each user (U,)."""
        return np.diff(self.items.starts)

    def newest(
        self,
        user_ids: NDArray[np.int64],
        max_length: int,
        *,
        before: NDArray[np.int64] | int | None = None,
        n_first: NDArray[np.int64] | None = None,
    ) -> Events:
        """Return the newest events of users, at most so many.

        Args:
            user_ids: (B,), repeats allowed.
            max_length: events kept of each, the newest.
            before: UTC seconds, one for all or (B,): only events strictly before count, so an
                event at that very second, such as the one to be foretold, is never among them.
            n_first: (B,): only each user's first so many events count. With the `places` of
                interactions, what came before each of these: the way where there are no times.

        Raises:
            ValueError: `before` is given and the interactions have no time.
        """
        if max_length < 0:
            raise ValueError(f"max_length must be >= 0, got {max_length}")
        starts_B = self.items.starts[user_ids]
        ends_B = self.items.starts[user_ids + 1]
        if before is not None:
            ends_B = self._first_at(starts_B, ends_B, before)
        if n_first is not None:
            ends_B = np.minimum(ends_B, starts_B + n_first)
        starts_B = np.maximum(starts_B, ends_B - max_length)
        return self.stretches(starts_B, ends_B - starts_B)

    def newest_items(self, max_length: int) -> ItemsByUser:
        """Return the items of every user's newest events, at most so many of each."""
        kept_U = np.minimum(self.counts, max_length)
        is_kept_R = np.arange(len(self.items.item_ids)) >= np.repeat(
            self.items.starts[1:] - kept_U, self.counts
        )
        starts = np.concatenate([[0], np.cumsum(kept_U)])
        return ItemsByUser(starts, self.items.item_ids[is_kept_R])

    def stretches(self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> Events:
        """Return stretches of neighbouring events, by the place of the first and how many."""
        steps_T = np.arange(lengths_B.max(initial=0))
        is_event_BT = steps_T < lengths_B[:, None]
        places_BT = np.where(is_event_BT, starts_B[:, None] + steps_T, 0)

        def padded(values_R: NDArray | None) -> NDArray | None:  # type: ignore[type-arg]
            if values_R is None:
                return None
            if not len(values_R):
                return np.zeros(places_BT.shape, values_R.dtype)
            return np.where(is_event_BT, values_R[places_BT], np.zeros((), values_R.dtype))

        item_ids = padded(self.items.item_ids)
        assert item_ids is not None
        context = {name: padded(values_R) for name, values_R in self.context.items()}
        return Events(
            item_ids,
            lengths_B,
            padded(self.times),
            padded(self.gaps),
            padded(self.weights),
            {name: values for name, values in context.items() if values is not None},
        )

    def _first_at(
        self,
        starts_B: NDArray[np.int64],
        ends_B: NDArray[np.int64],
        before: NDArray[np.int64] | int,
    ) -> NDArray[np.int64]:
        """Return the place of the first event at `before` or later, by bisection of all rows."""
        if self.times is None:
            raise ValueError(
                "histories before a time need the time of every interaction, but the interactions "
                "have none; name their time column in the schema, or cut by n_first"
            )
        low_B, high_B = starts_B.copy(), ends_B.copy()
        while (low_B < high_B).any():
            middle_B = (low_B + high_B) // 2
            is_open_B = low_B < high_B
            is_earlier_B = is_open_B & (self.times[np.where(is_open_B, middle_B, 0)] < before)
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
    places_R = np.empty(len(order_R), np.int64)
    places_R[order_R] = np.arange(len(order_R)) - items.starts[ordered.user_ids]
    gaps = None if ordered.times is None else _gaps(ordered.times, items.starts)
    return Histories(items, ordered.times, gaps, ordered.weights, places_R, context=ordered.context)


def _gaps(times_R: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    seconds_R = np.diff(times_R, prepend=times_R[:1])
    firsts = starts[:-1]
    seconds_R[firsts[firsts < len(times_R)]] = 0
    return np.log1p(seconds_R).astype(np.float32)


def with_event_scales(columns: Iterable[Column], train: Interactions) -> tuple[Column, ...]:
    """Return a tower's columns, the scales of the history's context fitted.

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
    for name in history.context:
        if name not in train.context:
            raise ValueError(
                f"event_features of column {history.name!r} name {name!r}, of which the training "
                f"interactions have no numbers{suggestion(name, train.context, 'they have')}; load "
                "them with the schema that names it"
            )
    return tuple(
        _scale(train.context[name]) if name in history.context else _AS_IT_IS
        for name in history.event_features
    )


def _scale(values_R: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation of the numbers that are known; the latter 1 of equals."""
    known = values_R[~np.isnan(values_R)].astype(np.float64)
    if not len(known):
        return _AS_IT_IS
    deviation = float(known.std()) if known.min() < known.max() else 1.0
    return float(known.mean()), deviation if deviation >= SMALLEST_SCALE else 1.0
