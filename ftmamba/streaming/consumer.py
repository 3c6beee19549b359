"""Consume events: every user's state is brought up to date, exactly once per event.

A batch is acknowledged once all its states are stored, so every event is delivered at least once.
The ids of a user's newest events are stored with the state in one atomic step, so an event that is
delivered again is recognised.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import add, attrgetter
from typing import NamedTuple

import torch

from ftmamba.streaming.events import UserEvent
from ftmamba.streaming.observer import CheckpointObserver
from ftmamba.streaming.sources import Batch, Source
from ftmamba.streaming.stores import ABSENT, Put, StateStore, Stored, next_version
from modeling_ftmamba.configuration_ftmamba import near
from modeling_ftmamba.user_state import USERS, UserState

TRIES = 20
"""How often a state is computed again because another process has changed it."""

LATE = ("refuse", "accept", "recompute")

EventsByUser = dict[str, list[UserEvent]]

Updated = Callable[[Sequence[str], UserState], None]
"""Called with the users whose states are new, and with these states."""

History = Callable[[str], Sequence[UserEvent]]
"""Returns every event of a user that has been read, in the order of arrival."""


@dataclass(frozen=True)
class Rules:
    """How events are consumed.

    Attributes:
        batch_size: events that are processed together.
        n_event_ids: newest event ids kept per user, to recognise events that are delivered again;
            at least a batch, all of which may be delivered again.
        late: for an event older than its user's newest: `refuse` skips it, `accept` observes it as
            if it had the time of the newest, `recompute` starts the user again and observes all
            events in order of time.
        history: required by `recompute`.
    """

    batch_size: int = 256
    n_event_ids: int = 256
    late: str = "refuse"
    history: History | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        if self.n_event_ids < self.batch_size:
            raise ValueError(
                f"n_event_ids must be batch_size ({self.batch_size}) or more, to recognise a batch "
                f"that is delivered again, got {self.n_event_ids}; keep more ids or use smaller "
                "batches"
            )
        if self.late not in LATE:
            raise ValueError(
                f"late must be one of {', '.join(LATE)}, got {self.late!r}{near(self.late, LATE)}"
            )
        if self.late == "recompute" and self.history is None:
            raise ValueError(
                "late='recompute' needs the users' earlier events; give history, or use "
                "late='refuse' or late='accept'"
            )


@dataclass(frozen=True)
class Counts:
    """The outcome of the messages of a source.

    Attributes:
        messages: read.
        observed: events that have changed a state.
        duplicates: events that the state already contained.
        late: events older than their user's newest, whatever the rule.
        unknown_items: events skipped because their item is unknown.
        malformed: messages skipped because they are not valid events.
        new_users: users who were started.
        updates: states that were written.
        recomputed: of these, those computed again from all events.
        conflicts: states computed again because another process had changed them.
    """

    messages: int = 0
    observed: int = 0
    duplicates: int = 0
    late: int = 0
    unknown_items: int = 0
    malformed: int = 0
    new_users: int = 0
    updates: int = 0
    recomputed: int = 0
    conflicts: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(add, _numbers(self), _numbers(other)))


_numbers = attrgetter(*(one.name for one in fields(Counts)))


def consume(
    source: Source,
    store: StateStore,
    observer: CheckpointObserver,
    rules: Rules | None = None,
    *,
    updated: Updated | None = None,
    progress: Callable[[Counts], None] = lambda _counts: None,
    report: Callable[[str], None] = lambda _text: None,
) -> Counts:
    """Consume the events of a source to its end, or for ever if it has none.

    Args:
        source: of the events.
        store: of the states.
        observer: the model.
        rules: for batches, ids and late events.
        updated: called after states are stored and before their events are acknowledged, so it may
            be called more than once for the same event.
        progress: called with the counts so far after each batch, even an empty one.
        report: called with the first message of each kind that is skipped.

    Raises:
        ValueError: a stored state is damaged, or of other weights.
        OSError: the source or the store failed; what was not acknowledged is delivered again.
    """
    consumer = _Consumer(store, observer, rules or Rules(), updated, report)
    counts = Counts()
    while (batch := source.read(consumer.rules.batch_size)) is not None:
        if len(batch):
            counts += consumer.process(batch)
            store.sync()
            source.acknowledge(batch)
        progress(counts)
    return counts


class _Change(NamedTuple):
    """The change of one user's state.

    Attributes:
        user_key: whose state.
        stored: what was read, None for a new user.
        events: to observe, in order of time; none leaves the state as it is.
        ids: of the new events, in the order of arrival.
        restart: whether the state is started again.
        counts: what to count once the state is stored.
    """

    user_key: str
    stored: Stored | None
    events: Sequence[UserEvent]
    ids: tuple[str, ...]
    restart: bool
    counts: Counts


@dataclass(frozen=True)
class _Consumer:
    """Processes one batch after the other."""

    store: StateStore
    observer: CheckpointObserver
    rules: Rules
    updated: Updated | None
    report: Callable[[str], None]
    reported: set[str] = field(default_factory=set)

    def process(self, batch: Batch) -> Counts:
        """Bring the users of a batch up to date."""
        counts = Counts(messages=len(batch), malformed=len(batch.problems))
        for problem in batch.problems:
            self._report_once("malformed", problem)
        events, refused = self._observable(batch.events)
        counts += refused
        by_user: EventsByUser = defaultdict(list)
        for event in events:
            by_user[event.user_key].append(event)
        for _ in range(TRIES):
            if not by_user:
                return counts
            done, by_user = self._try(by_user)
            counts += done
        raise OSError(
            f"the states of {len(by_user)} users, such as {next(iter(by_user))!r:.80}, were "
            f"changed by others {TRIES} times in a row; let fewer processes share a user, for "
            "example by one stream for each part of the users"
        )

    def _report_once(self, kind: str, text: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            self.report(f"{text}; skipped and counted, further ones will not be reported")

    def _observable(self, events: Sequence[UserEvent]) -> tuple[list[UserEvent], Counts]:
        counts = Counts()
        kept: list[UserEvent] = []
        for event, refusal in zip(events, self.observer.refusals(events), strict=True):
            if refusal is None:
                kept.append(event)
                continue
            kind = "unknown_items" if refusal.unknown_item else "malformed"
            counts += Counts(**{kind: 1})
            self._report_once(kind, f"an event of user {event.user_key!r:.80}: {refusal.reason}")
        return kept, counts

    def _try(self, by_user: EventsByUser) -> tuple[Counts, EventsByUser]:
        """Bring users up to date; return the counts, and users changed by another process."""
        stored = dict(zip(by_user, self.store.get(list(by_user)), strict=True))
        states = self._states(stored, by_user)
        counts = Counts()
        # Histories are padded: users whose numbers of events differ by less than twice go together.
        groups: dict[int, list[_Change]] = defaultdict(list)
        for key, events in by_user.items():
            change = self._change(stored[key], events, int(states[key].last_time))
            if change.events:
                groups[len(change.events).bit_length()].append(change)
            else:
                counts += change.counts
        conflicting: EventsByUser = {}
        for changes in groups.values():
            done, left = self._apply(changes, states)
            counts += done
            conflicting |= {key: by_user[key] for key in left}
        return counts, conflicting

    def _states(
        self, stored: Mapping[str, Stored | None], by_user: Mapping[str, Sequence[UserEvent]]
    ) -> dict[str, UserState]:
        """Return every user's stored state, or the initial one."""
        kept = {key: one.state for key, one in stored.items() if one is not None}
        new = [key for key, one in stored.items() if one is None]
        states: dict[str, UserState] = {}
        if kept:
            try:
                states |= _by_key(list(kept), self.observer.unpack(list(kept.values())))
            except ValueError as error:
                users = ", ".join(map(repr, list(kept)[:3]))
                raise ValueError(
                    f"a stored state, of user {users:.200} or another of {len(kept)}: {error}; or "
                    "use one store per model"
                ) from None
        if new:
            firsts = [_first(by_user[key]) for key in new]
            states |= _by_key(new, self.observer.start(firsts))
        return states

    def _change(self, stored: Stored | None, events: list[UserEvent], last_time: int) -> _Change:
        """Return the change of one user's state by the rules."""
        user_key = events[0].user_key
        new = without_duplicates(events, stored.event_ids if stored else ())
        late = [one for one in new if one.event.time < last_time]
        n_duplicates, restart = (
            len(events) - len(new),
            bool(late) and self.rules.late == "recompute",
        )
        if late and self.rules.late == "refuse":
            self._report_once(
                "late",
                f"an event of user {user_key!r:.80}, item {late[0].event.item!r:.80}, has "
                f"time {late[0].event.time:.0f}, older than the user's newest ({last_time})",
            )
            new = [event for event in new if event not in late]
        counts = Counts(
            observed=len(new),
            duplicates=n_duplicates,
            late=len(late),
            updates=bool(new),
            recomputed=restart,
            new_users=bool(new) and stored is None,
        )
        chosen = in_order(new)
        if restart:
            assert self.rules.history is not None
            # The history may lack events that are not acknowledged yet.
            past, _ = self._observable(self.rules.history(user_key))
            chosen = in_order(without_duplicates([*past, *events], ()))
        if self.rules.late == "accept":
            chosen = [
                replace(one, event=one.event._replace(time=float(last_time)))
                if one.event.time < last_time
                else one
                for one in chosen
            ]
        ids = tuple(event.event_id for event in new if event.event_id)
        return _Change(user_key, stored, chosen, ids, restart, counts)

    def _apply(
        self, changes: Sequence[_Change], states: Mapping[str, UserState]
    ) -> tuple[Counts, list[str]]:
        """Observe and store; return the counts, and the users changed by another process."""
        restarted: dict[str, UserState] = {}
        again = [change for change in changes if change.restart]
        if again:
            firsts = [_first(change.events) for change in again]
            keys = [change.user_key for change in again]
            restarted = _by_key(keys, self.observer.start(firsts))
        before = [restarted.get(change.user_key, states[change.user_key]) for change in changes]
        state = self.observer.observe(
            UserState.concatenate(before), [change.events for change in changes]
        )
        puts = [
            self._put(change, data)
            for change, data in zip(changes, self.observer.pack(state), strict=True)
        ]
        is_stored = self.store.put_many(puts)
        counts = Counts(conflicts=is_stored.count(False))
        stored: list[str] = []
        left: list[str] = []
        for change, done in zip(changes, is_stored, strict=True):
            (stored if done else left).append(change.user_key)
            counts += change.counts if done else Counts()
        if self.updated is not None and stored:
            rows = torch.tensor(is_stored).nonzero()[:, 0]
            self.updated(stored, state.select(rows.to(state.last.device)))
        return counts, left

    def _put(self, change: _Change, data: bytes) -> Put:
        version, ids = ABSENT, change.ids
        if change.stored is not None:
            version, ids = change.stored.version, (*change.stored.event_ids, *ids)
        stored = Stored(next_version(version), data, ids[-self.rules.n_event_ids :])
        return Put(change.user_key, stored, version)


def in_order(events: Iterable[UserEvent]) -> list[UserEvent]:
    """Sort by time, equal times by arrival; an event without a time follows its predecessor."""
    keyed: list[tuple[float, UserEvent]] = []
    newest = -math.inf
    for one in events:
        newest = newest if math.isnan(one.event.time) else one.event.time
        keyed.append((newest, one))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]


def without_duplicates(events: Sequence[UserEvent], event_ids: Sequence[str]) -> list[UserEvent]:
    """Leave out events whose ids are among `event_ids` or occur earlier in `events`."""
    ids = set(event_ids)
    new: list[UserEvent] = []
    for event in events:
        if event.event_id and event.event_id in ids:
            continue
        ids.add(event.event_id)
        new.append(event)
    return new


def _by_key(keys: Sequence[str], state: UserState) -> dict[str, UserState]:
    parts = [x.tensor_split(len(keys), USERS[name]) for name, x in state.tensors().items()]
    return {key: UserState(*own) for key, *own in zip(keys, *parts, strict=True)}


def _first(events: Sequence[UserEvent]) -> UserEvent:
    """Return the first event with a record of its user, or else the first."""
    return next((event for event in events if event.user_record is not None), events[0])
