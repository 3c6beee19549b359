"""Events in, users' states brought up to date: none lost, none taken twice, whatever is killed.

A batch is acknowledged once all its states are stored, so an event comes at least once. The ids of
a user's newest events are stored with the state, in one atomic step, so it counts only once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ftmamba.streaming.events import Event
from ftmamba.streaming.observer import Observer
from ftmamba.streaming.rules import Counts, Rules, in_order, without_known
from ftmamba.streaming.source import Batch, Source
from ftmamba.streaming.store import ABSENT, Put, StateStore, Stored, next_version
from modeling_ftmamba.user_state import UserState

TRIES = 20
"""So often is a state made again that another process changes meanwhile."""

Updated = Callable[[Sequence[str], Tensor], None]
"""Told of the users whose states are new, and of their embeddings (users, E)."""


def consume(
    source: Source,
    store: StateStore,
    observer: Observer,
    rules: Rules | None = None,
    *,
    updated: Updated | None = None,
    progress: Callable[[Counts], None] = lambda _counts: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Counts:
    """Take in the events of a source to its end; for ever where it has none.

    Args:
        source: of the events.
        store: of the states.
        observer: the model.
        rules: for batches, ids and late events.
        updated: called after states are stored and before their events are acknowledged, so
            perhaps more than once for one event.
        progress: called with the counts so far after each batch, empty ones too.
        tell: told of the first message of each kind that is skipped.

    Raises:
        ValueError: a stored state is damaged, or of other weights.
        OSError: the source or the store cannot go on; what was not acknowledged comes again.
    """
    rules = Rules() if rules is None else rules
    taker = _Taker(store, observer, rules, updated, _Once(tell))
    counts = Counts()
    while (batch := source.read(rules.batch_size)) is not None:
        if len(batch):
            counts += taker.take(batch)
            store.sync()
            source.acknowledge(batch)
        progress(counts)
    return counts


class _Once:
    """Tells the first of each kind."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._said: set[str] = set()

    def __call__(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._tell(f"{text}; skipped and counted, as further ones will be without a word")


class _Change(NamedTuple):
    """What is to become of one user's state.

    Attributes:
        user_key: who.
        stored: what was read, None of a new user.
        events: to observe, in order of time; none leaves the state as it is.
        ids: of the events that are new, as they came.
        anew: the state is to be started again.
        counts: what to count once the state is stored.
    """

    user_key: str
    stored: Stored | None
    events: Sequence[Event]
    ids: tuple[str, ...]
    anew: bool
    counts: Counts


@dataclass(frozen=True)
class _Taker:
    """Takes in one batch after the other."""

    store: StateStore
    observer: Observer
    rules: Rules
    updated: Updated | None
    once: _Once

    def take(self, batch: Batch) -> Counts:
        """Bring the users of a batch up to date."""
        counts = Counts(messages=len(batch), malformed=len(batch.problems))
        for problem in batch.problems:
            self.once("malformed", problem)
        events, refused = self._observable(batch.events)
        counts += refused
        by_user: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_user[event.user_key].append(event)
        for _ in range(TRIES):
            if not by_user:
                return counts
            done, by_user = self._try(by_user)
            counts += done
        raise OSError(
            f"the states of {len(by_user)} users, such as {next(iter(by_user))!r:.80}, were "
            f"changed by others {TRIES} times in a row; let fewer processes share a user, such as "
            "by one stream for each part of the users"
        )

    def _observable(self, events: Sequence[Event]) -> tuple[list[Event], Counts]:
        counts = Counts()
        kept: list[Event] = []
        for event, refusal in zip(events, self.observer.refusals(events), strict=True):
            if refusal is None:
                kept.append(event)
            elif refusal.unknown_item:
                counts += Counts(unknown_items=1)
                self.once("unknown", f"an event of user {event.user_key!r:.80}: {refusal.reason}")
            else:
                counts += Counts(malformed=1)
                self.once("malformed", f"an event of {event.user_key!r:.80}: {refusal.reason}")
        return kept, counts

    def _try(self, by_user: Mapping[str, list[Event]]) -> tuple[Counts, dict[str, list[Event]]]:
        """Bring users up to date; return the counts, and those whom another process has changed."""
        stored = dict(zip(by_user, self.store.get(list(by_user)), strict=True))
        states = self._states(stored, by_user)
        changes = [
            self._change(stored[key], events, int(states[key].last_time[0]))
            for key, events in by_user.items()
        ]
        counts = Counts()
        for change in changes:
            if not change.events:
                counts += change.counts
        moving = [change for change in changes if change.events]
        conflicting: dict[str, list[Event]] = {}
        for some in _of_like_length(moving):
            done, left = self._apply(some, states)
            counts += done
            conflicting |= {key: by_user[key] for key in left}
        return counts, conflicting

    def _states(
        self, stored: Mapping[str, Stored | None], by_user: Mapping[str, Sequence[Event]]
    ) -> dict[str, UserState]:
        """Return every user's state as it is kept, or as it begins."""
        kept = {key: one.state for key, one in stored.items() if one is not None}
        new = [key for key, one in stored.items() if one is None]
        states: dict[str, UserState] = {}
        if kept:
            states |= _one_by_one(list(kept), self._unpack(kept))
        if new:
            firsts = [_first(by_user[key]) for key in new]
            states |= _one_by_one(new, self.observer.start(firsts))
        return states

    def _unpack(self, kept: Mapping[str, bytes]) -> UserState:
        try:
            return self.observer.unpack(list(kept.values()))
        except ValueError as error:
            users = ", ".join(map(repr, list(kept)[:3]))
            raise ValueError(
                f"a stored state, of user {users:.200} or another of {len(kept)}: {error}; or give "
                "a store of its own to each model"
            ) from None

    def _change(self, stored: Stored | None, events: list[Event], last_time: int) -> _Change:
        """Decide what is to become of one user, by the rules."""
        user_key, known = events[0].user_key, stored.event_ids if stored else ()
        new = without_known(events, known)
        late = [event for event in new if event.time is not None and event.time < last_time]
        counts = Counts(duplicates=len(events) - len(new), late=len(late))
        anew = bool(late) and self.rules.late == "recompute"
        if late and self.rules.late == "refuse":
            self.once(
                "late",
                f"an event of user {user_key!r:.80}, item {late[0].item_key!r:.80}, is of time "
                f"{late[0].time}, older than the user's newest ({last_time})",
            )
            new = [event for event in new if event not in late]
        ids = tuple(event.event_id for event in new if event.event_id)
        counts += Counts(
            observed=len(new),
            updates=bool(new),
            recomputed=bool(anew),
            new_users=bool(new) and stored is None,
        )
        chosen = self._whole_past(user_key, events) if anew else in_order(new)
        if self.rules.late == "accept":
            chosen = [_not_before(event, last_time) for event in chosen]
        return _Change(user_key, stored, chosen, ids, anew, counts)

    def _whole_past(self, user_key: str, events: Sequence[Event]) -> list[Event]:
        """Return all of a user's events, those that were not acknowledged yet among them."""
        assert self.rules.history is not None
        past, _ = self._observable(self.rules.history(user_key))
        return in_order(without_known([*past, *events], ()))

    def _apply(
        self, changes: Sequence[_Change], states: Mapping[str, UserState]
    ) -> tuple[Counts, list[str]]:
        """Observe and store; return the counts, and the users whom another process has changed."""
        begun = {}
        again = [change for change in changes if change.anew]
        if again:
            firsts = [_first(change.events) for change in again]
            keys = [change.user_key for change in again]
            begun = _one_by_one(keys, self.observer.start(firsts))
        before = [begun.get(change.user_key, states[change.user_key]) for change in changes]
        state = self.observer.observe(
            UserState.concatenate(before), [change.events for change in changes]
        )
        puts = [
            self._put(change, data)
            for change, data in zip(changes, self.observer.pack(state), strict=True)
        ]
        stored = self.store.put_many(puts)
        counts = Counts(conflicts=stored.count(False))
        for change, done in zip(changes, stored, strict=True):
            counts += change.counts if done else Counts()
        if self.updated is not None and any(stored):
            rows = torch.tensor(stored).nonzero()[:, 0]
            keys = [change.user_key for change, done in zip(changes, stored, strict=True) if done]
            self.updated(keys, self.observer.embed(state.select(rows.to(state.last.device))))
        left = [change.user_key for change, done in zip(changes, stored, strict=True) if not done]
        return counts, left

    def _put(self, change: _Change, data: bytes) -> Put:
        version = change.stored.version if change.stored else ABSENT
        known = change.stored.event_ids if change.stored else ()
        ids = (*known, *change.ids)[-self.rules.n_event_ids :]
        return Put(change.user_key, Stored(next_version(version), data, ids), version)


def _of_like_length(changes: Iterable[_Change]) -> list[list[_Change]]:
    """Put users together whose numbers of events differ by less than twice: they are padded."""
    groups: dict[int, list[_Change]] = defaultdict(list)
    for change in changes:
        groups[len(change.events).bit_length()].append(change)
    return list(groups.values())


def _one_by_one(keys: Sequence[str], state: UserState) -> dict[str, UserState]:
    return {key: state.select(slice(row, row + 1)) for row, key in enumerate(keys)}


def _first(events: Sequence[Event]) -> Event:
    """Return the first event that tells who its user is, or else the first."""
    return next((event for event in events if event.user_record is not None), events[0])


def _not_before(event: Event, time: int) -> Event:
    is_late = event.time is not None and event.time < time
    return replace(event, time=time) if is_late else event
