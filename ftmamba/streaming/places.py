"""Which store and which source a text means, such as one from the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ftmamba.streaming.memory import MemoryStore
from ftmamba.streaming.redis_connection import path_of, query_of, without_query
from ftmamba.streaming.redis_store import PREFIX, RedisStore
from ftmamba.streaming.redis_stream import Member, RedisStreamSource
from ftmamba.streaming.source import Source
from ftmamba.streaming.sources import JsonLinesSource, StandardInputSource
from ftmamba.streaming.store import StateStore

_REDIS = ("redis", "rediss")
_OFFSET_ENDING = ".offset"


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        follow: wait for more at the end.
        offset_file: of a file; empty puts it beside the file, as `NAME.offset`.
        forgets: begin at the start of a file each time, without an offset.
        member: of a stream's group.
        tell: told of each failure to reach a server.
    """

    follow: bool = False
    offset_file: str = ""
    forgets: bool = False
    member: Member = field(default_factory=Member)
    tell: Callable[[str], None] = lambda _text: None


def open_store(
    place: str, *, ttl_seconds: float = 0, tell: Callable[[str], None] = lambda _text: None
) -> StateStore:
    """Open the store that a text means.

    Args:
        place: `memory:`, `file:PATH`, or `redis://HOST:PORT/DATABASE`, which may end in
            `?prefix=TEXT`.
        ttl_seconds: a user is forgotten so long after the last event; 0 for never.
        tell: told of each failure to reach a server.

    Raises:
        ValueError: it means none.
        OSError: it cannot be opened.
    """
    scheme, _, rest = place.partition(":")
    if scheme == "memory" and not rest:
        return MemoryStore(ttl_seconds=ttl_seconds)
    if scheme == "file" and rest:
        # Its module needs locks that not every system has.
        from ftmamba.streaming.mapped_file import MappedFileStore

        return MappedFileStore(Path(rest), ttl_seconds=ttl_seconds)
    if scheme in _REDIS:
        prefix = query_of(place, ("prefix",)).get("prefix", PREFIX)
        return RedisStore(without_query(place), prefix=prefix, ttl_seconds=ttl_seconds, tell=tell)
    raise ValueError(
        f"a store must be memory:, file:PATH or redis://HOST:PORT/DATABASE, got {place!r:.200}; "
        "such as file:states.bin"
    )


def open_source(place: str, reading: Reading) -> Source:
    """Open the source that a text means.

    Args:
        place: the path of a file of JSON lines, `-` for the standard input, or
            `redis://HOST:PORT/STREAM`, or `/DATABASE/STREAM`.
        reading: how.

    Raises:
        ValueError: it means none.
        OSError: it cannot be opened.
    """
    if place == "-":
        return StandardInputSource()
    if urlsplit(place).scheme in _REDIS and "://" in place:
        query_of(place, ())
        parts = path_of(place)
        database, stream = (["0"], parts) if len(parts) == 1 else (parts[:1], parts[1:])
        if len(stream) != 1 or not database[0].isdigit():
            raise ValueError(
                "the URL of a stream must end in its name, or in the number of a database and its "
                f"name, got {'/'.join(parts)!r:.80}; write redis://localhost:6379/events"
            )
        url = without_query(place, f"/{database[0]}")
        return RedisStreamSource(
            url, stream[0], reading.member, follow=reading.follow, tell=reading.tell
        )
    offset = reading.offset_file or f"{place}{_OFFSET_ENDING}"
    return JsonLinesSource(place, None if reading.forgets else offset, follow=reading.follow)
