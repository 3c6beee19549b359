"""`python -m ftmamba stream`: keep users' states up to date while events come in."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from ftmamba.commands.recommend import add_exclude_seen

if TYPE_CHECKING:
    from ftmamba.streaming.consumer import Counts
    from ftmamba.streaming.events import Refused
    from ftmamba.streaming.observer import CheckpointObserver
    from ftmamba.streaming.sources import Source
    from ftmamba.streaming.stores import StateStore
    from modeling_ftmamba.user_state import UserState

SECONDS_BETWEEN_LINES = 5.0

_REDIS = ("redis", "rediss")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    add(
        "--source", required=True, metavar="SOURCE",
        help='events: a file of JSON lines such as {"user_key": "42", "item_key": "50", "time": '
        '893286638, "event_id": "e1"}, - for the standard input, or redis://HOST:PORT/STREAM',
    )  # fmt: skip
    add(
        "--store", required=True, metavar="STORE",
        help="states: memory:, file:PATH, or redis://HOST:PORT/DATABASE[?prefix=TEXT&replicas=N], "
        "which waits for N replicas",
    )  # fmt: skip
    add("--follow", action="store_true", help="wait for more at the end")
    add(
        "--recommend", type=int, default=0, metavar="K",
        help="print the best K items of each user whose state is new, as a JSON line",
    )  # fmt: skip
    add_exclude_seen(parser)
    add(
        "--late", choices=("refuse", "accept", "recompute"), default="refuse",
        help="events older than their user's newest: write them to --refused, read them as if they "
        "were as new, or keep a log of each user's events in the store and compute the user again "
        "(default: refuse)",
    )  # fmt: skip
    add(
        "--refused", default="", metavar="PLACE",
        help="where messages that change no state are kept: a file of JSON lines, or "
        "redis://HOST:PORT/STREAM (default: SOURCE.refused, of a stream STREAM:refused)",
    )  # fmt: skip
    add("--batch", type=int, default=256, help="events at once (default: 256)")
    add(
        "--ttl", type=float, default=0, metavar="SECONDS",
        help="delete a user's state so long after the last event",
    )  # fmt: skip
    add("--float16", action="store_true", help="keep states in half the space, slightly rounded")
    add(
        "--offset", default="", metavar="FILE",
        help="how far a file was read (default: SOURCE.offset)",
    )  # fmt: skip
    add("--group", default="ftmamba", help="keeps how far a stream was consumed")
    add("--consumer", default="", help="a name to show to others (default: the machine's name)")
    add(
        "--claim-seconds", "--claim_seconds", type=float, default=30, metavar="SECONDS",
        help="of several consumers of a source one works; another takes over if it is silent for "
        "so long (default: 30)",
    )  # fmt: skip
    add(
        "--accept-loss", "--accept_loss", action="store_true",
        help="go on if the store has lost states and the source no longer has their events",
    )  # fmt: skip
    add("--revision", help="branch, tag or commit on the Hub")


def run(arguments: Namespace) -> None:
    """Read events to their end, or until Ctrl-C, and print how many had which outcome."""
    import torch

    from ftmamba.checkpoint import load_to_recommend
    from ftmamba.streaming.consumer import Rules, consume
    from ftmamba.streaming.observer import CheckpointObserver

    if arguments.recommend < 0:
        raise ValueError(f"--recommend must be 0 (none) or more, got {arguments.recommend}")
    if arguments.store == "memory:" and "://" in arguments.source:
        raise ValueError(
            "--store memory: loses at its end the states of events that a stream does not send "
            "again; give --store file:PATH or a Redis"
        )
    checkpoint = load_to_recommend(arguments.checkpoint, revision=arguments.revision)
    observer = CheckpointObserver(checkpoint, dtype=torch.float16 if arguments.float16 else None)
    source = open_source(
        arguments.source,
        follow=arguments.follow,
        # States in memory are lost at the end and have to be computed from all events again.
        offset_file=None if arguments.store == "memory:" else arguments.offset,
        group=arguments.group,
        report=_log,
    )
    try:
        store = open_store(arguments.store, ttl_seconds=arguments.ttl, report=_log)
    except BaseException:
        source.close()
        raise
    progress = _Progress(arguments.follow)
    n_users = None
    try:
        rules = Rules(
            batch_size=arguments.batch,
            late=arguments.late,
            consumer=arguments.consumer,
            claim_seconds=arguments.claim_seconds,
            accept_loss=arguments.accept_loss,
            refuse=open_refused(arguments.refused or _refused_of(arguments.source), report=_log),
        )
        updated = None
        if arguments.recommend:
            updated = _printer(observer, arguments.recommend, arguments.exclude_seen)
        consume(source, store, observer, rules, updated=updated, progress=progress, report=_log)
    except KeyboardInterrupt:
        _log("stopped; events that were not acknowledged are sent again")
    finally:
        source.close()
        try:
            n_users = len(store)
        except (OSError, ValueError):
            pass  # The store does not answer; the error being raised names the reason.
        finally:
            store.close()
    print(progress.summary(n_users))
    if n_removed := progress.counts.removed:
        raise OSError(
            f"the source has lost events {n_removed} times before they were read; keep more of "
            "them (XADD MAXLEN, persistence), and add the lost ones again"
        )


def open_store(
    name: str,
    *,
    ttl_seconds: float = 0,
    retries: int | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> "StateStore":
    """Open the store that a text names.

    Args:
        name: `memory:`, `file:PATH`, or `redis://HOST:PORT/DATABASE`, which may end in
            `?prefix=TEXT&replicas=N`.
        ttl_seconds: a user expires so long after the last event; 0 for never.
        retries: of a server that does not answer; None for those of `RedisConnection`.
        report: called with a text when a server does not answer.

    Raises:
        ValueError: it does not name a store.
        OSError: it cannot be opened.
    """
    scheme, _, rest = name.partition(":")
    if name == "memory:" or (scheme == "file" and rest):
        from ftmamba.streaming.stores import IN_MEMORY, SQLiteStore

        return SQLiteStore(rest or IN_MEMORY, ttl_seconds=ttl_seconds)
    if scheme in _REDIS:
        from ftmamba.streaming.redis_backend import PREFIX, RETRIES, RedisStore

        options = _options(name, ("prefix", "replicas"))
        prefix, replicas = options.get("prefix", PREFIX), options.get("replicas", "0")
        if not replicas.isdecimal():
            raise ValueError(f"replicas must be a number, got {replicas!r:.40}; such as replicas=1")
        if (database := urlsplit(name).path.strip("/")) and not database.isdecimal():
            raise ValueError(
                "the URL of a store must end in its server, or in the number of a database, got "
                f"{database!r:.80}; write redis://localhost:6379/0"
            )
        url = urlsplit(name)._replace(query="").geturl()
        return RedisStore(
            url,
            prefix=prefix,
            ttl_seconds=ttl_seconds,
            replicas=int(replicas),
            retries=RETRIES if retries is None else retries,
            report=report,
        )
    raise ValueError(
        f"a store must be memory:, file:PATH or redis://HOST:PORT/DATABASE, got {name!r:.200}; "
        "such as file:states.bin"
    )


def open_source(
    name: str,
    *,
    follow: bool = False,
    offset_file: str | Path | None = "",
    group: str = "ftmamba",
    report: Callable[[str], None] = lambda _text: None,
) -> "Source":
    """Open the source that a text names.

    Args:
        name: the path of a file of JSON lines, `-` for the standard input, or
            `redis://HOST:PORT/STREAM`, or `/DATABASE/STREAM`.
        follow: wait for more at the end.
        offset_file: of a file; empty for `NAME.offset` beside it, None to start again each time.
        group: keeps how far a stream was consumed.
        report: called with a text when a server does not answer.

    Raises:
        ValueError: it does not name a source.
        OSError: it cannot be opened.
    """
    from ftmamba.streaming.redis_backend import RedisStreamSource
    from ftmamba.streaming.sources import JsonLinesSource, StandardInputSource

    if name == "-":
        return StandardInputSource()
    if _is_redis(name):
        return RedisStreamSource(*_stream_of(name), group=group, follow=follow, report=report)
    offset_file = f"{name}.offset" if offset_file == "" else offset_file
    return JsonLinesSource(name, offset_file, follow=follow)


def open_refused(
    name: str, *, report: Callable[[str], None] = lambda _text: None
) -> "Callable[[Sequence[Refused]], None]":
    """Return what keeps refused messages, in a file or in `redis://HOST:PORT/STREAM`."""
    from ftmamba.streaming.redis_backend import RefusedStream
    from ftmamba.streaming.sources import RefusedFile

    if _is_redis(name):
        return RefusedStream(*_stream_of(name), report=report)
    return RefusedFile(name)


def _refused_of(source: str) -> str:
    if _is_redis(source):
        return f"{source.rstrip('/')}:refused"
    return "stdin.refused" if source == "-" else f"{source}.refused"


def _is_redis(name: str) -> bool:
    return "://" in name and urlsplit(name).scheme in _REDIS


def _stream_of(name: str) -> tuple[str, str]:
    """Return the URL of a server and database, and the key of a stream in it."""
    _options(name, ())
    url = urlsplit(name)
    parts = [unquote(part) for part in url.path.split("/") if part]
    database, stream = (["0"], parts) if len(parts) == 1 else (parts[:1], parts[1:])
    if len(stream) != 1 or not database[0].isdigit():
        raise ValueError(
            "the URL of a stream must end in its name, or in the number of a database and its "
            f"name, got {'/'.join(parts)!r:.80}; write redis://localhost:6379/events"
        )
    return url._replace(query="", path=f"/{database[0]}").geturl(), stream[0]


def _options(url: str, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the options after a URL's question mark."""
    from ftmamba.streaming.redis_backend import without_password

    values = parse_qs(urlsplit(url).query, keep_blank_values=True)
    for name in values:
        if name not in allowed:
            raise ValueError(
                f"{without_password(url)} has no option {name!r}; it has"
                + (f": {', '.join(allowed)}" if allowed else " none")
            )
    return {name: value[-1] for name, value in values.items()}


def _log(text: str) -> None:
    print(f"ftmamba: {text}", file=sys.stderr, flush=True)


def _printer(
    observer: "CheckpointObserver", k: int, exclude_seen: bool | None
) -> "Callable[[Sequence[str], UserState], None]":
    """Return a function that prints the best items of users."""
    n_items = len(observer.catalogue)
    if k > n_items:
        raise ValueError(f"--recommend must be {n_items} or less, the items, got {k}")

    def show(user_keys: Sequence[str], state: "UserState") -> None:
        best = observer.recommend(user_keys, state, k, exclude_seen=exclude_seen)
        for key, item_keys in zip(user_keys, best, strict=True):
            line = {"user_key": key, "item_keys": item_keys}
            print(json.dumps(line, ensure_ascii=False), flush=True)

    return show


class _Progress:
    """Counts of messages and their rate, printed every few seconds while following."""

    def __init__(self, follow: bool) -> None:
        from ftmamba.streaming.consumer import Counts

        self._follow, self.counts = follow, Counts()
        self._began = self._printed_at = time.monotonic()
        self._n_printed = 0

    def __call__(self, counts: "Counts") -> None:
        self.counts = counts
        seconds = time.monotonic() - self._printed_at
        if not self._follow or seconds < SECONDS_BETWEEN_LINES:
            return
        n_new = counts.messages - self._n_printed
        if n_new:
            _log(f"{counts.messages} messages, {n_new / seconds:,.0f}/s, {counts.updates} updates")
        self._n_printed, self._printed_at = counts.messages, time.monotonic()

    def summary(self, n_users: int | None) -> str:
        """Return a line for each outcome that occurred, with its number of messages."""
        seconds = time.monotonic() - self._began
        counts = {name.replace("_", " "): count for name, count in vars(self.counts).items()}
        shown = {
            name: f"{count:,}"
            for name, count in counts.items()
            if count or name in ("messages", "observed")
        }
        shown["messages"] += f"  in {seconds:.1f} s, {counts['messages'] / seconds:,.0f}/s"
        if n_users is not None:
            shown["users in the store"] = f"{n_users:,}"
        width = max(map(len, shown))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in shown.items())
