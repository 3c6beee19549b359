"""Users kept fresh: events in, states in a store, embeddings out."""

from ftmamba.streaming.consumer import consume
from ftmamba.streaming.events import Event, parse_event
from ftmamba.streaming.observer import CheckpointObserver
from ftmamba.streaming.rules import Counts, Rules
from ftmamba.streaming.source import Batch, Source
from ftmamba.streaming.store import Put, StateStore, Stored, next_version

__all__ = [
    "Batch",
    "CheckpointObserver",
    "Counts",
    "Event",
    "Put",
    "Rules",
    "Source",
    "StateStore",
    "Stored",
    "consume",
    "next_version",
    "parse_event",
]
