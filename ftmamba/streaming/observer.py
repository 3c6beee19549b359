"""What a model makes of events: users' states, and embeddings of them.

Shapes: B users, T events of the longest among them, I items, E embedding, F event features.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ftmamba.checkpoint import Checkpoint
from ftmamba.streaming.events import Event
from modeling_ftmamba.configuration_ftmamba import GAP, history_of, near
from modeling_ftmamba.encoders import KeyIndex, text_table
from modeling_ftmamba.user_state import (
    NO_TIME,
    UserState,
    states_from_bytes,
    states_to_bytes,
)


class Refusal(NamedTuple):
    """Why an event cannot be observed.

    Attributes:
        unknown_item: the item is not in the catalogue, and the event brings no columns of it.
        reason: in words.
    """

    unknown_item: bool
    reason: str


class Observer(Protocol):
    """What a consumer needs of a model; `CheckpointObserver` is one."""

    def refusals(self, events: Sequence[Event]) -> list[Refusal | None]:
        """Return of each event why it cannot be observed, None of one that can be."""
        ...

    def start(self, firsts: Sequence[Event]) -> UserState:
        """Return the states of users of whom nothing is kept, given the first event of each."""
        ...

    def observe(self, state: UserState, events: Sequence[Sequence[Event]]) -> UserState:
        """Return the states of users after some events of each, in order of time."""
        ...

    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings of users (B, E)."""
        ...

    def pack(self, state: UserState) -> list[bytes]:
        """Return the state of each user as bytes."""
        ...

    def unpack(self, data: Sequence[bytes]) -> UserState:
        """Return the states of users from the bytes of each."""
        ...


class CheckpointObserver:
    """Observes events by a trained model, its catalogue and the users that it knows.

    An item of the catalogue is embedded as the catalogue has it; another one by the columns that
    its event brings. A user starts from the columns that the first event brings; else, where the
    checkpoint knows the user, from the record and the interactions that it keeps; else from
    nothing.

    Args:
        checkpoint: of a model with a column of kind `history`.
        dtype: of the numbers in the bytes of a state; `torch.float16` halves them, and rounds a
            state each time it is written.

    Raises:
        ValueError: the model has no history.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
        self._model: Any = checkpoint.model
        self._model.train(False)
        self._extractor = checkpoint.extractor
        history = history_of(self._extractor.columns("user"))
        if history is None:
            raise ValueError(
                "the checkpoint's user tower has no column of kind 'history', so events change "
                "nothing in it; train a model with one"
            )
        self._features, self._context = history.event_features, history.context
        self._dtype = dtype
        self._fingerprint = checkpoint.catalogue.fingerprint
        embeddings = torch.from_numpy(checkpoint.catalogue.embeddings)
        self._items_IE = embeddings.to(self._model.device, self._model.dtype)
        self._keys = text_table(checkpoint.catalogue.keys)
        self._index = KeyIndex(self._keys)
        self._users = checkpoint.users
        keys = checkpoint.users.keys if checkpoint.users else ()
        self._row_of_user = {key: row for row, key in enumerate(keys)}

    def refusals(self, events: Sequence[Event]) -> list[Refusal | None]:
        rows = self._index.rows([event.item_key for event in events])
        return [self._refusal(event, row) for event, row in zip(events, rows, strict=True)]

    def _refusal(self, event: Event, row: int | None) -> Refusal | None:
        if row is None and event.item_record is None:
            return Refusal(
                True,
                f"item {event.item_key!r:.80} is not among the {len(self._items_IE)} of the "
                "catalogue, and the event brings no item_record with columns of it",
            )
        given = event.context or {}
        if self._context and given and not any(name in self._context for name in given):
            name = next(iter(given))
            return Refusal(
                False,
                f"its context has {name!r:.80}{near(name, self._context)}, and none of what the "
                f"model reads: {', '.join(self._context)}",
            )
        for side, record in (("items", event.item_record), ("users", event.user_record)):
            if record is not None and (row is None or side == "users"):
                try:
                    self._encoded(side, [record])
                except ValueError as error:
                    return Refusal(False, f"its record of {side}: {error}")
        return None

    @torch.inference_mode()
    def start(self, firsts: Sequence[Event]) -> UserState:
        records = [self._record(event) for event in firsts]
        tensors = self._encoded("users", records)
        state: UserState = (
            self._model.start(**tensors) if tensors else self._model.start(n_users=len(firsts))
        )
        pasts = [self._past(event) for event in firsts]
        return self.observe(state, pasts) if any(pasts) else state

    @torch.inference_mode()
    def observe(self, state: UserState, events: Sequence[Sequence[Event]]) -> UserState:
        lengths_B = torch.tensor([len(own) for own in events], device=self._model.device)
        slots_BT = torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]
        flat = [event for own in events for event in own]
        history_BTE = self._items_IE.new_zeros(*slots_BT.shape, self._items_IE.shape[1])
        history_BTE[slots_BT] = self._item_embeddings(flat)
        times_BT = torch.full(slots_BT.shape, NO_TIME, device=lengths_B.device)
        times = [NO_TIME if event.time is None else event.time for event in flat]
        times_BT[slots_BT] = torch.tensor(times, device=lengths_B.device)
        # Not in 16 bits with the model: a number of the context is scaled only there.
        wide = torch.promote_types(history_BTE.dtype, torch.float32)
        shape = (*slots_BT.shape, len(self._features))
        features_BTF = history_BTE.new_full(shape, torch.nan, dtype=wide)
        for place, name in enumerate(self._features):
            if name != GAP:
                values = [_feature(event, name) for event in flat]
                features_BTF[slots_BT, place] = features_BTF.new_tensor(values)
        observed: UserState = self._model.observe(
            state, history_BTE, lengths_B, event_features=features_BTF, times=times_BT
        )
        return observed

    @torch.inference_mode()
    def embed(self, state: UserState) -> Tensor:
        embeds_BE: Tensor = self._model.embed(state)
        return embeds_BE

    def pack(self, state: UserState) -> list[bytes]:
        return states_to_bytes(state, fingerprint=self._fingerprint, dtype=self._dtype)

    def unpack(self, data: Sequence[bytes]) -> UserState:
        wide = torch.promote_types(self._model.dtype, torch.float32)
        # Those that were written in another type are of another length.
        alike = [data] if len(set(map(len, data))) == 1 else [[one] for one in data]
        parts = [states_from_bytes(some, fingerprint=self._fingerprint).to(wide) for some in alike]
        return UserState.concatenate(parts)

    def _record(self, event: Event) -> dict[str, Any]:
        if event.user_record is not None:
            return dict(event.user_record)
        row = self._row_of_user.get(event.user_key)
        return self._users.record(row) if self._users and row is not None else {}

    def _past(self, event: Event) -> list[Event]:
        """Return what the checkpoint knows that the user of a first event has done."""
        row = self._row_of_user.get(event.user_key)
        if event.user_record is not None or self._users is None or row is None:
            return []
        return [
            Event(
                event_id="",
                user_key=event.user_key,
                item_key=self._keys[item],
                time=None if math.isnan(time) else int(time),
                weight=None if math.isnan(weight) else weight,
                context=context,
            )
            for item, time, weight, context in self._users.events(row)
        ]

    def _item_embeddings(self, events: Sequence[Event]) -> Tensor:
        """Return the embedding of each event's item (events, E); one event or more."""
        rows = self._index.rows([event.item_key for event in events])
        embeds = self._items_IE[[row or 0 for row in rows]]
        # One record an item: what is embedded once is the same for all.
        unseen = {
            event.item_key: event.item_record or {}
            for row, event in zip(rows, events, strict=True)
            if row is None
        }
        if not unseen:
            return embeds
        tensors = self._encoded("items", list(unseen.values()))
        made = dict(zip(unseen, self._model.get_item_embeddings(**tensors), strict=True))
        for place, (row, event) in enumerate(zip(rows, events, strict=True)):
            if row is None:
                embeds[place] = made[event.item_key]
        return embeds

    def _encoded(self, side: str, records: list[Any]) -> dict[str, Tensor]:
        users, items = (records if side == name else None for name in ("users", "items"))
        encoded = self._extractor(users=users, items=items)
        return {name: tensor.to(self._model.device) for name, tensor in encoded.items()}


def _feature(event: Event, name: str) -> float:
    """Return an event's weight or a number of its context, NaN where it is missing."""
    value = event.weight if name == "weight" else (event.context or {}).get(name)
    return math.nan if value is None else value
