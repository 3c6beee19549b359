"""Observe events with a model: users' states, and embeddings of them.

Shapes: B users, T events of the longest among them, I items, E embedding.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.checkpoint import Checkpoint
from ftmamba.streaming.events import UserEvent
from ftmamba.streaming.state_bytes import states_from_bytes, states_to_bytes
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.processing_ftmamba import Event, HistoryReader, unknown_columns
from modeling_ftmamba.user_state import NO_TIME, UserState

SEEN_KEPT = 500
"""Newest items that a state keeps, to leave them out of recommendations."""


class Refusal(NamedTuple):
    """Why an event cannot be observed: the kind that `Refused` has, and the reason in words."""

    kind: str
    reason: str


class CheckpointObserver:
    """Observes events with a trained model, its catalogue and its known users.

    An item in the catalogue has the embedding of the catalogue, another one is embedded from the
    event's `item_record`. A user starts from the first event's `user_record`; without one, a known
    user starts from the record and interactions in the checkpoint, and others from nothing.

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
        self.catalogue = checkpoint.catalogue
        embeddings = torch.from_numpy(checkpoint.catalogue.embeddings)
        items_IE = embeddings.to(self._model.device, self._model.dtype)
        self._reader = HistoryReader(self._model, self._extractor, self.catalogue, items_IE)
        if self._reader.column is None:
            raise ValueError(
                "the checkpoint's user tower has no column of kind 'history', so events change "
                "nothing in it; train a model with one"
            )
        self._context = [Column(name, "numeric") for name in self._reader.column.context]
        self._n_recent = max(self._reader.n_read, SEEN_KEPT)
        self._dtype = dtype
        self._users = checkpoint.users
        keys = checkpoint.users.keys if checkpoint.users else ()
        self._row_of_user = {key: row for row, key in enumerate(keys)}

    def refusals(self, events: Sequence[UserEvent]) -> list[Refusal | None]:
        """Return for each event why it cannot be observed, None if it can."""
        rows = self.catalogue.rows(one.event.item for one in events)
        return [self._refusal(one, row) for one, row in zip(events, rows, strict=True)]

    def _refusal(self, one: UserEvent, row: int | None) -> Refusal | None:
        if row is None and one.item_record is None:
            return Refusal(
                "unknown_items",
                f"item {one.event.item!r:.80} is not among the {len(self.catalogue)} of the "
                "catalogue, and the event has no item_record with columns of it",
            )
        if rule := unknown_columns(one.event.context, self._context):
            return Refusal("malformed", f"its context has {rule}")
        try:
            if one.user_record is not None:
                self._extractor(users=[one.user_record])
            if one.item_record is not None and row is None:
                self._extractor(items=[one.item_record])
        except ValueError as error:
            return Refusal("malformed", f"its record: {error}")
        return None

    @torch.inference_mode()
    def start(self, firsts: Sequence[UserEvent]) -> UserState:
        """Return the initial states of users, given the first event of each."""
        records: list[Any] = []
        histories: list[Sequence[Event]] = []
        for one in firsts:
            row = self._row_of_user.get(one.user_key) if one.user_record is None else None
            if self._users is not None and row is not None:
                records.append(self._users.record(row))
                histories.append(self._users.events(row))
            else:
                records.append(one.user_record or {})
                histories.append(())
        none = torch.full((len(firsts), self._n_recent), -1, device=self._model.device)
        encoded = self._extractor(users=records, return_tensors="pt")
        tensors = {name: tensor.to(self._model.device) for name, tensor in encoded.items()}
        state: UserState = (
            self._model.start(**tensors) if tensors else self._model.start(n_users=len(firsts))
        )
        state = replace(state, recent=none)
        return self._observe(state, histories) if any(histories) else state

    def observe(self, state: UserState, events: Sequence[Sequence[UserEvent]]) -> UserState:
        """Return the states of users after some events of each, in order of time."""
        rows = iter(self.catalogue.rows(one.event.item for own in events for one in own))
        histories = [[_resolved(one, next(rows)) for one in own] for own in events]
        return self._observe(state, histories)

    @torch.inference_mode()
    def _observe(self, state: UserState, histories: Sequence[Sequence[Event]]) -> UserState:
        tensors = self._reader.of_events(histories, max_length=0)
        history_BTE, lengths_B = tensors["user_history"], tensors["user_history_lengths"]
        is_event_BT = torch.arange(history_BTE.shape[1], device=lengths_B.device)
        is_event_BT = is_event_BT < lengths_B[:, None]
        times_BT = torch.full(is_event_BT.shape, NO_TIME, device=lengths_B.device)
        times_BT[is_event_BT] = torch.tensor(
            [
                NO_TIME if math.isnan(event.time) else int(event.time)
                for own in histories
                for event in own
            ],
            device=lengths_B.device,
        )
        observed: UserState = self._model.observe(
            state,
            history_BTE,
            lengths_B,
            event_features=tensors.get("user_event_features"),
            times=times_BT,
        )
        added = self._reader.rows(histories)
        recent = [
            torch.cat([own, torch.from_numpy(new).to(own.device)])[len(new) :]
            for own, new in zip(state.recent, added, strict=True)
        ]
        return replace(observed, recent=torch.stack(recent))

    @torch.inference_mode()
    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings of users (B, E)."""
        embeds_BE: Tensor = self._model.embed(state)
        return embeds_BE

    @torch.inference_mode()
    def scores(self, state: UserState) -> Tensor:
        """Return the scores (B, I) of the catalogue for users, those of `Recommender`."""
        users_BE = self._model.embed(state).to(self._model.dtype)
        return self._reader.scores(users_BE, self._recent(state))

    def recommend(
        self,
        user_keys: Sequence[str],
        state: UserState,
        k: int,
        *,
        exclude_seen: bool | None = None,
    ) -> list[list[str]]:
        """Return the keys of the k best items of users, best first; see `Recommender.recommend`.

        The seen items of a user are those that the checkpoint knows, and the newest of the stream.
        """
        ranked = self.ranked(user_keys, state, k, exclude_seen=exclude_seen)
        return [[self.catalogue.keys[row] for row, _ in own] for own in ranked]

    @torch.inference_mode()
    def ranked(
        self,
        user_keys: Sequence[str],
        state: UserState,
        k: int,
        *,
        exclude_seen: bool | None = None,
        exclude: Iterable[object] = (),
    ) -> list[list[tuple[int, float]]]:
        """Return row and score of the k best items of users, without those to `exclude`."""
        seen = self._recent(state)
        for index, key in enumerate(user_keys):
            row = self._row_of_user.get(key)
            if self._users is not None and row is not None:
                seen[index] = np.concatenate([seen[index], self._users.seen.of(row)])
        excluded = self.catalogue.excluded(exclude)
        scores_BK, ids_BK = self._reader.best(
            self.scores(state), k, seen, exclude_seen=exclude_seen, exclude=excluded
        )
        return [
            [pair for pair in zip(*own, strict=True) if pair[1] > -math.inf]
            for own in zip(ids_BK.tolist(), scores_BK.tolist(), strict=True)
        ]

    def _recent(self, state: UserState) -> list[NDArray[np.int64]]:
        n_kept_B = state.n_events.clamp(max=self._n_recent).tolist()
        return [
            own[len(own) - n_kept :].cpu().numpy()
            for own, n_kept in zip(state.recent, n_kept_B, strict=True)
        ]

    def pack(self, state: UserState) -> list[bytes]:
        """Return the state of each user as bytes."""
        fingerprint = self.catalogue.fingerprint
        return states_to_bytes(state, fingerprint=fingerprint, dtype=self._dtype)

    def unpack(self, data: Sequence[bytes]) -> UserState:
        """Return the states of users from the bytes of each."""
        wide = torch.promote_types(self._model.dtype, torch.float32)
        # States that were written in another type have another length.
        alike = [data] if len(set(map(len, data))) == 1 else [[one] for one in data]
        fingerprint = self.catalogue.fingerprint
        parts = [states_from_bytes(some, fingerprint=fingerprint).to(wide) for some in alike]
        return UserState.concatenate([self._with_recent(part) for part in parts])

    def _with_recent(self, state: UserState) -> UserState:
        """Return states that kept fewer items, such as older ones, with unknown items before."""
        shape = len(state), self._n_recent
        if state.recent.numel() and int(state.recent.max()) >= len(self.catalogue):
            raise ValueError("the bytes of a user's state name items that the catalogue has not")
        if state.recent.shape == shape:
            return state
        unknown = torch.full(shape, -1, device=state.recent.device)
        return replace(state, recent=torch.cat([unknown, state.recent], 1)[:, -shape[1] :])


def _resolved(one: UserEvent, row: int | None) -> Event:
    """Return the event of a row of the catalogue, or of the columns of another item."""
    return one.event._replace(item=(one.item_record or {}) if row is None else row)
