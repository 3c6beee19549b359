"""The past of users, from the file that their events come from."""

from collections import defaultdict
from contextlib import closing
from pathlib import Path

from ftmamba.streaming.events import Event
from ftmamba.streaming.sources import JsonLinesSource


class FileHistory:
    """What a file of events says of a user's past, up to where a source has read it.

    It holds the events of all users in memory.

    Args:
        path: the file that `source` reads.
        source: says how far.
    """

    def __init__(self, path: str | Path, source: JsonLinesSource) -> None:
        self._path, self._source = path, source
        self._place = 0
        self._events: dict[str, list[Event]] = defaultdict(list)

    def __call__(self, user_key: str) -> list[Event]:
        with closing(JsonLinesSource(self._path, start=self._place)) as reader:
            while reader.place < self._source.place:
                batch = reader.read(1)
                if batch is None:
                    break
                for event in batch.events:
                    self._events[event.user_key].append(event)
            self._place = reader.place
        return self._events.get(user_key, [])
