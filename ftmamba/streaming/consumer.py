"""Consume events: every user's state is brought up to date, exactly once per event.

A source has one consumer at a time, so each user's events are processed in the order of the source,
however many consumers there are; the others wait and take over. The store keeps, with each state,
the position of the user's newest event: an event that is read again is recognised by it. It also
keeps the position up to which all events are in the states, and consuming continues from there: if
the store has lost what was written to it, its position is an earlier one, and the events are read
again. What changes no state is handed to `Rules.refuse`.
"""

import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from operator import add, attrgetter
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch

from ftmamba.streaming.events import Refused, UserEvent, parse_event
from ftmamba.streaming.observer import CheckpointObserver
from ftmamba.streaming.sources import Batch, Source
from ftmamba.streaming.stores import (
    ABSENT,
    Put,
    StateStore,
    Stored,
    SupersededError,
    next_version,
)
from modeling_ftmamba.configuration_ftmamba import near
from modeling_ftmamba.user_state import USERS, UserState

TRIES = 20
"""How often a state is computed again because another process has changed it."""

LATE = ("refuse", "accept", "recompute")

_MOST_SOURCES = 8
"""Whose positions are kept with a state; a file that is replaced each day is another source."""

EventsByUser = dict[str, list[UserEvent]]

Updated = Callable[[Sequence[str], UserState], None]
"""Called with the users whose states are new, and with these states."""


@dataclass(frozen=True)
class Rules:
    """How events are consumed.

    Attributes:
        batch_size: events that are processed together.
        n_event_ids: newest event ids kept per user, to recognise events that are sent twice.
        late: for an event older than its user's newest: `refuse` skips it, `accept` observes it as
            if it had the time of the newest, `recompute` keeps a log of each user's events in the
            store, starts the user again and observes all events in order of time.
        consumer: a name to show to other consumers of the source.
        claim_seconds: another consumer takes over when this one has written nothing for so long;
            at once if its process has ended on the same machine.
        accept_loss: go on if the store has lost states that cannot be computed again.
        refuse: called with messages that change no state, before they are acknowledged, so it may
            be called more than once for the same message; such as `RefusedFile`.
    """

    batch_size: int = 256
    n_event_ids: int = 256
    late: str = "refuse"
    consumer: str = ""
    claim_seconds: float = 30.0
    accept_loss: bool = False
    refuse: Callable[[Sequence[Refused]], None] = lambda _refused: None

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_event_ids"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.claim_seconds < math.inf:
            raise ValueError(
                f"claim_seconds must be a positive number, got {self.claim_seconds}; such as 30"
            )
        if self.late not in LATE:
            raise ValueError(
                f"late must be one of {', '.join(LATE)}, got {self.late!r}{near(self.late, LATE)}"
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
        too_large: events skipped because the model's numbers overflow with them.
        removed: times that the source has lost events before they were read.
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
    too_large: int = 0
    removed: int = 0
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
        report: called with the first message of each kind that is skipped, and with what happens to
            source and store.

    Raises:
        ValueError: a stored state is damaged, or of other weights, or states are lost.
        OSError: the source or the store failed; what was not acknowledged is delivered again.
    """
    rules = rules or Rules()
    consumer = _Consumer(store, observer, rules, updated, report)
    # Unique, and others on this machine can see whether the process still runs.
    owner = f"{rules.consumer or socket.gethostname()}|{os.getpid()}|{_machine()}|{uuid4().hex}"
    counts, claimed, position, n_superseded = Counts(), "", "", 0
    written_at = time.monotonic()
    try:
        while True:
            try:
                if source.name != claimed:
                    position = _claim(source, store, rules, owner, position, report)
                    claimed = source.name
                batch = source.read(rules.batch_size)
                if batch is None:
                    break
                # A file has no name before its first line.
                if len(batch) and source.name == claimed:
                    counts += consumer.process(batch, claimed)
                    store.sync()
                    store.advance(batch.position)
                    position, n_superseded = batch.position, 0
                    source.acknowledge(batch)
                    written_at = time.monotonic()
                elif claimed and time.monotonic() - written_at > rules.claim_seconds / 4:
                    store.advance(position)
                    written_at = time.monotonic()
            except SupersededError as error:
                claimed, n_superseded = "", n_superseded + 1
                report(f"{error}; claiming it again")
                if n_superseded == TRIES:
                    raise OSError(
                        f"{error}, {TRIES} times in a row; use smaller batches, or a larger "
                        "claim_seconds"
                    ) from error
            progress(counts)
        if n_vanished := store.n_vanished():
            raise OSError(
                f"{n_vanished} users' states have vanished from the store meanwhile; protect them "
                "from eviction and deletion, and run this once more to compute them again"
            )
    finally:
        # If the store does not answer, the claim ends by itself.
        with suppress(OSError, ValueError):
            store.release()
    return counts


def observe_events(
    batch: Batch, store: StateStore, observer: CheckpointObserver, rules: Rules | None = None
) -> Counts:
    """Bring the users of events up to date that no source delivers again; see `consume`."""
    consumer = _Consumer(store, observer, rules or Rules(), None, lambda _text: None)
    counts = consumer.process(batch, "")
    store.sync()
    return counts


def _claim(
    source: Source,
    store: StateStore,
    rules: Rules,
    owner: str,
    consumed: str,
    report: Callable[[str], None],
) -> str:
    """Wait for the source, and go to the position of the states; return that."""
    claim, is_reported = store.claim(source.name, owner, rules.claim_seconds), False
    while claim.owner != owner:
        gone = claim.owner if _has_ended(claim.owner) else ""
        if not gone and not is_reported:
            is_reported = True
            name = claim.owner.split("|")[0]
            report(f"{source.name} is consumed by {name}; waiting to take over")
        if not gone:
            time.sleep(min(1.0, rules.claim_seconds / 10))
        claim = store.claim(source.name, owner, rules.claim_seconds, gone)
    n_vanished, position = store.n_vanished(), claim.position
    known = max(consumed, source.bookmark)
    if n_vanished or position < known:
        begin = "" if n_vanished else position
        what = (
            f"the states of {n_vanished} users have vanished from the store"
            if n_vanished
            else f"the states in the store lack events of {source.name} that were consumed before"
        )
        if not (lost := source.lost_after(begin)):
            report(f"{what}; reading the events again from {begin or 'the first'}")
            position = begin
        elif not rules.accept_loss:
            raise ValueError(
                f"{what}, and they cannot be computed again: {lost}; restore the store or the "
                "source, or accept the loss by accept_loss"
            )
        else:
            report(f"{what}; going on without them")
            position = max(position, known)
        if n_vanished:
            store.forget(positions=not lost)
    source.seek(position)
    return position


def _has_ended(owner: str) -> bool:
    """Whether a consumer was a process of this machine that has ended."""
    _, process, machine, _ = owner.rsplit("|", 3)
    if machine != _machine():
        return False
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _machine() -> str:
    """Return what processes have in common that see each other's numbers."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {uuid4().hex}"


class _Change(NamedTuple):
    """The change of one user's state.

    Attributes:
        user_key: whose state.
        stored: what was read, None for a user who starts.
        version: that is to be replaced.
        events: to observe, in order of time; none leaves the state as it is.
        new: of these, those that are not in the state, in the order of arrival.
        positions: of the first and the newest event of the user, refused ones among them.
        restart: whether the state is started again.
        refused: events that change nothing.
        n_duplicates, n_late: events of the kind.
    """

    user_key: str
    stored: Stored | None
    version: int
    events: Sequence[UserEvent]
    new: Sequence[UserEvent]
    positions: tuple[str, str]
    restart: bool
    refused: Sequence[Refused]
    n_duplicates: int
    n_late: int

    def counts(self) -> Counts:
        """Return what to count once the change is stored."""
        return Counts(
            observed=len(self.new),
            duplicates=self.n_duplicates,
            late=self.n_late,
            too_large=sum(one.kind == "too_large" for one in self.refused),
            updates=bool(self.new),
            recomputed=bool(self.new) and self.restart,
            new_users=bool(self.new) and self.version == ABSENT,
        )


class _Part(NamedTuple):
    """Users who were observed together, their states, and the bytes of these."""

    changes: Sequence[_Change]
    state: UserState
    data: Sequence[bytes]


@dataclass(frozen=True)
class _Consumer:
    """Processes one batch after the other."""

    store: StateStore
    observer: CheckpointObserver
    rules: Rules
    updated: Updated | None
    report: Callable[[str], None]
    reported: set[str] = field(default_factory=set)

    def process(self, batch: Batch, source: str) -> Counts:
        """Bring the users of a batch of a source up to date."""
        events, refused = self._observable(batch)
        counts = Counts(messages=len(batch))
        for one in refused:
            counts += Counts(**{one.kind: 1})
        self._refuse(refused)
        by_user: EventsByUser = defaultdict(list)
        for event in events:
            by_user[event.user_key].append(event)
        for _ in range(TRIES):
            if not by_user:
                return counts
            done, by_user = self._try(by_user, source)
            counts += done
        raise OSError(
            f"the states of {len(by_user)} users, such as {next(iter(by_user))!r:.80}, were "
            f"changed by others {TRIES} times in a row; let fewer processes share a user, for "
            "example by one stream for each part of the users"
        )

    def _refuse(self, refused: Sequence[Refused]) -> None:
        if refused:
            self.rules.refuse(refused)
        for one in refused:
            if one.kind not in self.reported:
                self.reported.add(one.kind)
                self.report(f"{one.reason}; skipped and counted, more such are not reported")

    def _observable(self, batch: Batch) -> tuple[list[UserEvent], list[Refused]]:
        kept: list[UserEvent] = []
        refused = list(batch.problems)
        for event, refusal in zip(batch.events, self.observer.refusals(batch.events), strict=True):
            if refusal is None:
                kept.append(event)
            else:
                refused.append(_refused(refusal.kind, event, refusal.reason))
        return kept, refused

    def _try(self, by_user: EventsByUser, source: str) -> tuple[Counts, EventsByUser]:
        """Bring users up to date; return the counts, and users changed by another process."""
        stored = dict(zip(by_user, self.store.get(list(by_user)), strict=True))
        versions = {key: one.version if one else ABSENT for key, one in stored.items()}
        for key, one in stored.items():
            # The state had vanished and began again: it lacks events before its first.
            first, _ = one.positions.get(source, ("", "")) if one else ("", "")
            if any("" < event.position < first for event in by_user[key]):
                stored[key] = None
        states = self._states(stored, by_user)
        # Histories are padded: users whose numbers of events differ by less than twice go together.
        groups: dict[int, list[_Change]] = defaultdict(list)
        for key, events in by_user.items():
            change = self._change(stored[key], events, int(states[key].last_time), source)
            change = change._replace(version=versions[key])
            groups[len(change.events).bit_length()].append(change)
        counts = Counts()
        parts: list[_Part] = []
        for size, changes in groups.items():
            if size:
                found, changes = self._observed(changes, states)  # noqa: PLW2901
                parts += found
            for change in changes:
                counts += change.counts()
                self._refuse(change.refused)
        self._refuse([one for part in parts for change in part.changes for one in change.refused])
        puts = [
            self._put(change, data, source)
            for part in parts
            for change, data in zip(part.changes, part.data, strict=True)
        ]
        done, conflicting = self._stored(parts, self.store.put_many(puts) if puts else ())
        return counts + done, {key: by_user[key] for key in conflicting}

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

    def _change(
        self, stored: Stored | None, events: list[UserEvent], last_time: int, source: str
    ) -> _Change:
        """Return the change of one user's state by the rules."""
        user_key, rule = events[0].user_key, self.rules.late
        _, before = stored.positions.get(source, ("", "")) if stored else ("", "")
        unread = [one for one in events if not one.position or one.position > before]
        new = without_duplicates(unread, stored.event_ids if stored else ())
        late = [one for one in new if one.event.time < last_time]
        n_duplicates, refused = len(events) - len(new), []
        reason = f"it is older than the user's newest ({last_time})"
        if rule == "recompute" and stored and not stored.is_logged:
            reason += ", and the user's log lacks events from before late='recompute'"
        restart = bool(late) and rule == "recompute" and (not stored or stored.is_logged)
        if late and rule == "accept":
            newest = float(last_time)
            new = [
                replace(one, event=one.event._replace(time=newest))
                if one.event.time < newest
                else one
                for one in new
            ]
        elif late and not restart:
            refused = [_refused("late", one, reason) for one in late]
            new = [one for one in new if not one.event.time < last_time]
        chosen = in_order(new)
        if restart:
            past = [parse_event(text) for text in self.store.log(user_key)] if stored else []
            chosen = in_order([*past, *new])
        positions = [one.position for one in events if one.position]
        return _Change(
            user_key,
            stored,
            ABSENT,
            chosen,
            new,
            (min(positions), max(positions)) if positions else ("", ""),
            restart,
            refused,
            n_duplicates,
            len(late),
        )

    def _observed(
        self, changes: Sequence[_Change], states: Mapping[str, UserState]
    ) -> tuple[list[_Part], list[_Change]]:
        """Return the states after the changes, and the changes of which nothing is left.

        Events with which the model's numbers overflow are refused, one by one.
        """
        try:
            return [self._part(changes, states)], []
        except ValueError:
            if len(changes) > 1:
                halves = changes[: len(changes) // 2], changes[len(changes) // 2 :]
                (parts, none), (more, also) = (self._observed(half, states) for half in halves)
                return parts + more, none + also
        (change,) = changes
        refused = list(change.refused)
        part, kept = None, change._replace(events=())
        for event in change.events:
            tried = kept._replace(events=[*kept.events, event])
            before = states
            if change.stored is None:
                before = _by_key([change.user_key], self.observer.start([_first(tried.events)]))
            try:
                part, kept = self._part([tried], before), tried
            except ValueError as error:
                refused.append(_refused("too_large", event, str(error)))
        new = [one for one in change.new if any(one is other for other in kept.events)]
        kept = kept._replace(new=new, refused=refused)
        return ([part._replace(changes=[kept])], []) if part and new else ([], [kept])

    def _part(self, changes: Sequence[_Change], states: Mapping[str, UserState]) -> _Part:
        """Observe; raise ValueError if a state is not finite."""
        restarted: dict[str, UserState] = {}
        if again := [change for change in changes if change.restart]:
            firsts = [_first(change.events) for change in again]
            keys = [change.user_key for change in again]
            restarted = _by_key(keys, self.observer.start(firsts))
        before = [restarted.get(change.user_key, states[change.user_key]) for change in changes]
        state = self.observer.observe(
            UserState.concatenate(before), [change.events for change in changes]
        )
        return _Part(changes, state, self.observer.pack(state))

    def _stored(
        self, parts: Sequence[_Part], is_stored: Sequence[bool]
    ) -> tuple[Counts, list[str]]:
        """Return the counts of what was stored, and the users changed by another process."""
        counts = Counts(conflicts=is_stored.count(False))
        left: list[str] = []
        first = 0
        for changes, state, _ in parts:
            done = is_stored[first : first + len(changes)]
            first += len(changes)
            stored: list[str] = []
            for change, one in zip(changes, done, strict=True):
                (stored if one else left).append(change.user_key)
                counts += change.counts() if one else Counts()
            if self.updated is not None and stored:
                rows = torch.tensor(done).nonzero()[:, 0]
                self.updated(stored, state.select(rows.to(state.last.device)))
        return counts, left

    def _put(self, change: _Change, data: bytes, source: str) -> Put:
        before = change.stored
        ids = [
            *(before.event_ids if before else ()),
            *(x.event_id for x in change.new if x.event_id),
        ]
        positions = dict(before.positions) if before else {}
        first, newest = change.positions
        if source and newest:
            first, _ = positions.pop(source, change.positions)
            positions = dict([*positions.items(), (source, (first, newest))][-_MOST_SOURCES:])
        is_logged = self.rules.late == "recompute" and (not before or before.is_logged)
        events = [one.to_json() for one in change.new] if is_logged else []
        newest_ids = tuple(ids[-self.rules.n_event_ids :])
        version = next_version(change.version)
        stored = Stored(version, data, newest_ids, positions, is_logged)
        return Put(change.user_key, stored, change.version, events, before is None)


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


def _refused(kind: str, event: UserEvent, reason: str) -> Refused:
    of = f"an event of user {event.user_key!r:.80}, item {event.event.item!r:.80}"
    if event.position:
        of += f", at {event.position}"
    return Refused(kind, f"{of}: {reason}", event.to_json())


def _by_key(keys: Sequence[str], state: UserState) -> dict[str, UserState]:
    parts = [x.tensor_split(len(keys), USERS[name]) for name, x in state.tensors().items()]
    return {key: UserState(*own) for key, *own in zip(keys, *parts, strict=True)}


def _first(events: Sequence[UserEvent]) -> UserEvent:
    """Return the first event with a record of its user, or else the first."""
    return next((event for event in events if event.user_record is not None), events[0])
