"""The store and the source that a text names, such as one from the command line."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ftmamba.streaming.redis_backend import (
    PREFIX,
    Member,
    RedisStore,
    RedisStreamSource,
    without_password,
)
from ftmamba.streaming.sources import JsonLinesSource, Source, StandardInputSource
from ftmamba.streaming.stores import MemoryStore, StateStore

_REDIS = ("redis", "rediss")


def open_store(
    name: str, *, ttl_seconds: float = 0, report: Callable[[str], None] = lambda _text: None
) -> StateStore:
    """Open the store that a text names.

    Args:
        name: `memory:`, `file:PATH`, or `redis://HOST:PORT/DATABASE`, which may end in
            `?prefix=TEXT`.
        ttl_seconds: a user expires so long after the last event; 0 for never.
        report: called with a text when a server does not answer.

    Raises:
        ValueError: it does not name a store.
        OSError: it cannot be opened.
    """
    scheme, _, rest = name.partition(":")
    if scheme == "memory" and not rest:
        return MemoryStore(ttl_seconds=ttl_seconds)
    if scheme == "file" and rest:
        # Its module needs file locks, which some systems lack.
        from ftmamba.streaming.mapped_file import MappedFileStore

        return MappedFileStore(Path(rest), ttl_seconds=ttl_seconds)
    if scheme in _REDIS:
        prefix = _options(name, ("prefix",)).get("prefix", PREFIX)
        url = urlsplit(name)._replace(query="").geturl()
        return RedisStore(url, prefix=prefix, ttl_seconds=ttl_seconds, report=report)
    raise ValueError(
        f"a store must be memory:, file:PATH or redis://HOST:PORT/DATABASE, got {name!r:.200}; "
        "such as file:states.bin"
    )


def open_source(
    name: str,
    *,
    follow: bool = False,
    offset_file: str | Path | None = "",
    member: Member | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> Source:
    """Open the source that a text names.

    Args:
        name: the path of a file of JSON lines, `-` for the standard input, or
            `redis://HOST:PORT/STREAM`, or `/DATABASE/STREAM`.
        follow: wait for more at the end.
        offset_file: of a file; empty for `NAME.offset` beside it, None to start again each time.
        member: of a stream's group.
        report: called with a text when a server does not answer.

    Raises:
        ValueError: it does not name a source.
        OSError: it cannot be opened.
    """
    if name == "-":
        return StandardInputSource()
    url = urlsplit(name)
    if url.scheme in _REDIS and "://" in name:
        _options(name, ())
        parts = [unquote(part) for part in url.path.split("/") if part]
        database, stream = (["0"], parts) if len(parts) == 1 else (parts[:1], parts[1:])
        if len(stream) != 1 or not database[0].isdigit():
            raise ValueError(
                "the URL of a stream must end in its name, or in the number of a database and its "
                f"name, got {'/'.join(parts)!r:.80}; write redis://localhost:6379/events"
            )
        return RedisStreamSource(
            url._replace(query="", path=f"/{database[0]}").geturl(),
            stream[0],
            member,
            follow=follow,
            report=report,
        )
    offset_file = f"{name}.offset" if offset_file == "" else offset_file
    return JsonLinesSource(name, offset_file, follow=follow)


def _options(url: str, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the options after a URL's question mark."""
    values = parse_qs(urlsplit(url).query, keep_blank_values=True)
    for name in values:
        if name not in allowed:
            raise ValueError(
                f"{without_password(url)} has no option {name!r}; it has: {', '.join(allowed)}"
            )
    return {name: value[-1] for name, value in values.items()}
