"""Users kept fresh: events in, states in a store, embeddings out."""

from ftmamba.streaming.consumer import Counts, Rules, consume, observe_events
from ftmamba.streaming.events import Refused, UserEvent, parse_event
from ftmamba.streaming.observer import CheckpointObserver
from ftmamba.streaming.sources import Batch, Source
from ftmamba.streaming.stores import Put, StateStore, Stored, next_version

__all__ = [
    "Batch",
    "CheckpointObserver",
    "Counts",
    "Put",
    "Refused",
    "Rules",
    "Source",
    "StateStore",
    "Stored",
    "UserEvent",
    "consume",
    "next_version",
    "observe_events",
    "parse_event",
]
