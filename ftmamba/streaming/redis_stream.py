"""Events from a Redis Stream, shared by a group of consumers."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftmamba.streaming.events import Event, parse_event
from ftmamba.streaming.redis_connection import TRIES, RedisConnection
from ftmamba.streaming.source import Batch

FIELD = "event"
"""The field of an entry that holds the event as JSON: `XADD stream * event '{...}'`."""

GROUP = "ftmamba"

_BEGINNING = "0-0"

Entries = list[tuple[bytes, Mapping[bytes, bytes] | None]]


@dataclass(frozen=True)
class Member:
    """Who reads.

    Attributes:
        group: what it has acknowledged comes to none of its consumers again.
        consumer: unlike that of any other process of the group, the same after a restart, which
            then goes on with what it had not acknowledged; empty takes the name of the machine.
        reclaim_seconds: what another consumer has not acknowledged for so long is taken over.
    """

    group: str = GROUP
    consumer: str = ""
    reclaim_seconds: float = 60.0

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self.consumer or socket.gethostname()


class RedisStreamSource:
    """Delivers first what this consumer has not acknowledged, then what others left, then the new.

    An event that brings no id has that of its entry. Entries stay in the stream: trim it (XTRIM).

    Args:
        url: of the server.
        stream: its key; made if need be.
        member: of the group, which is made if need be and begins with the stream's first entry.
        follow: wait for more at the end.
        tries: see `RedisConnection`.
        wait: waits so many seconds between them.
        tell: told of each failure.

    Raises:
        ValueError: the URL is none of Redis, or the key holds no stream.
        ImportError: the client is not installed.
        OSError: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        member: Member | None = None,
        *,
        follow: bool = False,
        tries: int = TRIES,
        wait: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._stream, self._follow = stream, follow
        self._member = Member() if member is None else member
        self._tell = tell
        self._connection = RedisConnection(url, tries=tries, wait=wait, tell=self._told)
        self._client = self._connection.client
        # Where our own unacknowledged entries are read on; empty when they are through.
        self._own_from = _BEGINNING
        self._reclaim_at = 0.0
        try:
            self._connection.ask(self._make_group)
        except (OSError, ValueError):
            self.close()
            raise

    def read(self, most_events: int) -> Batch | None:
        entries = self._own(most_events) or self._left(most_events) or self._new(most_events)
        if not entries and not self._follow:
            return None
        events: list[Event] = []
        problems: list[str] = []
        for entry_id, fields in entries:
            try:
                events.append(self._parsed(entry_id.decode(), fields))
            except ValueError as error:
                problems.append(f"stream {self._stream}, entry {entry_id.decode()}: {error}")
        return Batch(events, problems, [entry_id for entry_id, _ in entries])

    def acknowledge(self, batch: Batch) -> None:
        ids: Sequence[bytes] = batch.position
        if ids:
            self._connection.ask(lambda: self._client.xack(self._stream, self._member.group, *ids))

    def close(self) -> None:
        self._connection.close()

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(
                self._stream, self._member.group, id=_BEGINNING, mkstream=True
            )
        except Exception as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _own(self, most: int) -> Entries:
        """Return what a process of this name was given and did not acknowledge."""
        if not self._own_from:
            return []
        entries = self._group_read(self._own_from, most, None)
        self._own_from = entries[-1][0].decode() if entries else ""
        return entries

    def _left(self, most: int) -> Entries:
        """Return what others were given long ago and did not acknowledge."""
        now = time.monotonic()
        if now < self._reclaim_at:
            return []
        idle = round(1000 * self._member.reclaim_seconds)
        answer: Any = self._connection.ask(
            lambda: self._client.xautoclaim(
                self._stream, self._member.group, self._member.name, idle, _BEGINNING, count=most
            )
        )
        entries: Entries = answer[1]
        if not entries:
            self._reclaim_at = now + self._member.reclaim_seconds / 4
        return entries

    def _new(self, most: int) -> Entries:
        # A server waits while it blocks: shorter than the time-out of the socket.
        return self._group_read(">", most, 1000 if self._follow else None)

    def _group_read(self, after: str, most: int, block: int | None) -> Entries:
        answer: Any = self._connection.ask(
            lambda: self._client.xreadgroup(
                self._member.group,
                self._member.name,
                {self._stream: after},
                count=most,
                block=block,
            )
        )
        return [entry for _, entries in answer or () for entry in entries]

    def _told(self, text: str) -> None:
        """Read our own once more: entries may have been given to us, and lost on their way."""
        self._own_from = _BEGINNING
        self._tell(text)

    def _parsed(self, entry_id: str, fields: Mapping[bytes, bytes] | None) -> Event:
        text = (fields or {}).get(FIELD.encode())
        if text is None:
            raise ValueError(
                f"the entry has no field {FIELD!r}, or was removed from the stream; add events by "
                f"XADD {self._stream} * {FIELD} '{{...}}'"
            )
        return parse_event(text, event_id=entry_id)
