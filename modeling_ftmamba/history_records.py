"""Histories as people hand them over: from lists of events to what the user tower reads.

An event is the key of an item, or a dict with what else is known of it:

    "50"
    {"item": "50", "time": "2024-03-01", "weight": 4}
    {"item": "50", "price": 3.5}                          a column that the history's column names
    {"item": {"title": "Dune", "genres": ["sci-fi"]}}     an item that is in no catalogue

Events stand oldest first. Where each of a record's events has a time, they are put in order of
time, those of one second as they stand; otherwise they stay as they are, and gaps are missing.

Shapes: B records, T events of the longest, I items, E embedding, F event features.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .catalogue import Catalogue
from .columns import EVENT_KEYS, LARGEST_CONTEXT, history_of, near
from .texts import WrongValueError
from .time_columns import seconds_of
from .tower_encoder import place_of


class Event(NamedTuple):
    """One event.

    Attributes:
        item: a key, columns, or a row of the catalogue.
        time: UTC seconds, NaN where unknown.
        weight: such as a rating, NaN where unknown.
        context: numbers by the names of their columns, absent or NaN where unknown.
    """

    item: Any
    time: float
    weight: float
    context: Mapping[str, float]


_RULE = "an event must be an item's key, or a dict with 'item' and perhaps 'time' and 'weight'"
_MOST_EVENTS = 10**6
_NUMBERS = (int, float, Decimal, np.integer, np.floating, np.bool_)


class HistoryReader:
    """Reads the history of raw records, if the model has one.

    Args:
        model: both towers.
        extractor: of the same checkpoint.
        catalogue: of the same checkpoint.
        items: the catalogue's embeddings (I, E) on the model's device.
    """

    def __init__(self, model: Any, extractor: Any, catalogue: Catalogue, items: Tensor) -> None:
        self.column = history_of(extractor.columns("user"))
        self._model, self._extractor = model, extractor
        self._catalogue, self._items_IE = catalogue, items

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `user_history` and what belongs to it; nothing where the model has no history.

        Args:
            records: raw records; a record without a history, or with None, has no events.

        Raises:
            WrongValueError: what a record has is no list of events.
        """
        return self.of_events(self.events(records))

    def events(self, records: Sequence[Mapping[str, Any]]) -> list[list[Event]]:
        """Return the events of raw records, in order; see `__call__`."""
        if self.column is None:
            return [[] for _ in records]
        place, name = place_of(self.column, "user"), self.column.name
        return [
            _events(record.get(name), self.column.context, place, row)
            for row, record in enumerate(records)
        ]

    def taken(self, histories: Sequence[Sequence[Event]]) -> tuple[Tensor, Tensor] | None:
        """Return the rows of the histories and of the catalogue's items that are in them.

        Of events as the model reads them, for `TwoTowerNetwork.scores`; None where it has no bias
        for them.
        """
        if self.column is None or self._model.repeat_bias is None:
            return None
        newest = [events[-self._kept :] for events in histories]
        found = self._rows([event.item for events in newest for event in events])
        rows = [row for row, events in enumerate(newest) for _ in events]
        pairs = [(row, item) for row, item in zip(rows, found, strict=True) if item is not None]
        pairs_P2 = torch.tensor(pairs, dtype=torch.int64, device=self._items_IE.device).view(-1, 2)
        return pairs_P2[:, 0], pairs_P2[:, 1]

    def of_events(self, histories: Sequence[Sequence[Event]]) -> dict[str, Tensor]:
        """Return the tensors of events in order; the newest of them, as the column says."""
        if self.column is None:
            return {}
        kept = self._kept
        newest = [events[-kept:] for events in histories]
        length = max(map(len, newest), default=0)
        device, width = self._items_IE.device, self._items_IE.shape[1]
        history_BTE = self._items_IE.new_zeros(len(newest), length, width)
        is_event_BT = torch.tensor(
            [[place < len(events) for place in range(length)] for events in newest],
            dtype=torch.bool, device=device,
        ).view(len(newest), length)  # fmt: skip
        history_BTE[is_event_BT] = self._embed(
            [event.item for events in newest for event in events]
        )
        tensors = {
            "user_history": history_BTE,
            "user_history_lengths": torch.tensor([len(events) for events in newest]).to(device),
        }
        if self.column.event_features:
            features = np.full((len(newest), length, len(self.column.event_features)), np.nan)
            for row, (events, everything) in enumerate(zip(newest, histories, strict=True)):
                known = {
                    "gap": _gaps(everything)[-kept:],
                    "weight": [event.weight for event in events],
                }
                for name in self.column.context:
                    known[name] = [event.context.get(name, math.nan) for event in events]
                for place, feature in enumerate(self.column.event_features):
                    features[row, : len(events), place] = known[feature]
            tensors["user_event_features"] = torch.from_numpy(features).float().to(device)
        return tensors

    @property
    def _kept(self) -> int:
        return (self.column and self.column.max_length) or _MOST_EVENTS

    def _rows(self, items: Sequence[Any]) -> list[int | None]:
        """Return the rows of the catalogue that items are, None for what is not in it."""
        found = self._catalogue.index.rows(one if isinstance(one, str) else "" for one in items)
        return [
            item if isinstance(item, int) else row for item, row in zip(items, found, strict=True)
        ]

    def _embed(self, items: Sequence[Any]) -> Tensor:
        """Return the embeddings (T, E) of rows and keys of the catalogue, other keys, columns."""
        rows = self._rows(items)
        unknown = [place for place, row in enumerate(rows) if row is None]
        embeds_TE = self._items_IE[[row or 0 for row in rows]]
        if unknown:
            records = [self._record(items[place]) for place in unknown]
            encoded = self._extractor(items=records, return_tensors="pt")
            inputs = {name: tensor.to(embeds_TE.device) for name, tensor in encoded.items()}
            embeds_TE[unknown] = self._model.get_item_embeddings(**inputs).to(embeds_TE.dtype)
        return embeds_TE

    def _record(self, item: Any) -> dict[str, Any]:
        """Return the columns of an item that is not in the catalogue."""
        absent = {column.name: None for column in self._extractor.columns("item")}
        if isinstance(item, Mapping):
            return {**absent, **{name: item[name] for name in item if name in absent}}
        own = {self._extractor.item_key: item} if self._extractor.item_key in absent else {}
        return {**absent, **own}


def _events(given: Any, context: Sequence[str], place: str, row: int) -> list[Event]:
    """Return a record's events in order."""
    if given is None:
        return []
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence | np.ndarray):
        raise WrongValueError(place, row, given, rule="must be a list of events, oldest first")
    events = [_event(one, context, place, row) for one in given]
    if events and not any(math.isnan(event.time) for event in events):
        events.sort(key=lambda event: event.time)
    return events


def _event(given: Any, context: Sequence[str], place: str, row: int) -> Event:
    if isinstance(given, str):
        return Event(given, math.nan, math.nan, {})
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return Event(str(given), math.nan, math.nan, {})
    if not isinstance(given, Mapping) or not isinstance(given.get("item"), str | int | Mapping):
        raise WrongValueError(place, row, given, rule=_RULE)
    known = (*EVENT_KEYS, *context)
    for key in given:
        if key not in known:
            rule = f"an event has no {key!r:.40}{near(key, known)}; it may have {', '.join(known)}"
            raise WrongValueError(place, row, given, rule=rule)
    item, weight = given["item"], given.get("weight")
    try:
        time = seconds_of(given.get("time"))
        number = math.nan if weight is None else float(weight)
    except (TypeError, ValueError, OverflowError):
        rule = "an event's time must be UTC seconds or an ISO text, its weight a number"
        raise WrongValueError(place, row, given, rule=rule) from None
    brought = {name: _number(given, name, place, row) for name in context if name in given}
    return Event(str(item) if isinstance(item, int) else item, time, number, brought)


def _number(given: Mapping[str, Any], name: str, place: str, row: int) -> float:
    """Return the number that an event has in a column of its context; None and NaN are NaN."""
    value = given[name]
    if value is None:
        return math.nan
    try:
        number = float(value) if isinstance(value, _NUMBERS) else math.inf
    except OverflowError:
        number = math.inf
    if abs(number) > LARGEST_CONTEXT:
        rule = f"an event's {name!r:.40} must be a finite number, or None where it is not known"
        raise WrongValueError(place, row, given, rule=rule)
    return number


def _gaps(events: Sequence[Event]) -> list[float]:
    """Return log(1 + seconds since the event before) of each, 0 for the first."""
    times = np.array([event.time for event in events])
    return np.log1p(np.diff(times, prepend=times[:1])).tolist()
