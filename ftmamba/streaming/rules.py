"""How events are taken in, and what has become of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from ftmamba.streaming.events import Event
from modeling_ftmamba.configuration_ftmamba import near

LATE = ("refuse", "accept", "recompute")

History = Callable[[str], Sequence[Event]]
"""Returns every event of a user that was read so far, in the order in which they came."""


@dataclass(frozen=True)
class Rules:
    """How events are taken in.

    Attributes:
        batch_size: events that are taken in at once.
        n_event_ids: newest events a user of which the ids are kept, to recognise one that comes
            again; not fewer than a batch, all of which may come again.
        late: what becomes of an event that is older than its user's newest. `refuse` drops it,
            `accept` takes it as if it had happened with the newest, `recompute` starts the user
            again and observes all events in order of time.
        history: `recompute` needs it.
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
                f"n_event_ids must be batch_size ({self.batch_size}) or more, for a batch that "
                f"comes again is recognised by them, got {self.n_event_ids}; keep more ids or take "
                "smaller batches"
            )
        if self.late not in LATE:
            raise ValueError(
                f"late must be one of {', '.join(LATE)}, got {self.late!r}{near(self.late, LATE)}"
            )
        if self.late == "recompute" and self.history is None:
            raise ValueError(
                "late='recompute' needs the users' earlier events, and none are at hand; give "
                "history, or take late='refuse' or late='accept'"
            )


@dataclass(frozen=True)
class Counts:
    """What has become of the messages of a source.

    Attributes:
        messages: read.
        observed: events that have changed a state.
        duplicates: events that the state had already seen.
        late: events that were older than their user's newest, whatever became of them.
        unknown_items: events of items that nothing is known of, skipped.
        malformed: messages that are no event, skipped.
        new_users: users who were started.
        updates: states that were written.
        recomputed: of these, those made anew from all events.
        conflicts: states that another process had changed meanwhile, and were made again.
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
        names = [field.name for field in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


def in_order(events: Sequence[Event]) -> list[Event]:
    """Sort by time, those of one second as they came; one without a time stays behind its elder."""
    keyed: list[tuple[int, Event]] = []
    newest = -1
    for event in events:
        newest = newest if event.time is None else event.time
        keyed.append((newest, event))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]


def without_known(events: Sequence[Event], known: Sequence[str]) -> list[Event]:
    """Leave out events whose ids are known or come twice."""
    seen = set(known)
    new: list[Event] = []
    for event in events:
        if event.event_id and event.event_id in seen:
            continue
        seen.add(event.event_id)
        new.append(event)
    return new
