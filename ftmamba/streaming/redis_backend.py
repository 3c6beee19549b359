"""Redis: users' states that many processes share, and events from a stream."""

import importlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ftmamba.streaming.events import UserEvent, parse_event
from ftmamba.streaming.sources import Batch
from ftmamba.streaming.stores import (
    Put,
    StateStore,
    Stored,
    check_key,
    check_puts,
    check_ttl,
)

FIRST_WAIT_SECONDS = 0.1
MOST_WAIT_SECONDS = 5.0
RETRIES = 7
"""After some ten seconds without an answer an error is raised."""

TIMEOUT_SECONDS = 10.0

PREFIX = "ftmamba:state:"
GROUP = "ftmamba"
FIELD = "event"
"""The field of an entry that holds the event as JSON: `XADD stream * event '{...}'`."""

_SCHEMES = ("redis", "rediss", "unix")
_AT_A_TIME = 256
_FIELDS = ("version", "state", "event_ids")
_BEGINNING = "0-0"
# Versions are compared as texts: a number in Lua has only 53 bits.
_COMPARE_AND_SWAP = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3], 'event_ids', ARGV[4])
if ARGV[5] == '0' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return 1
"""

Answer = TypeVar("Answer")
Entries = list[tuple[bytes, Mapping[bytes, bytes] | None]]


class RedisConnection:
    """Sends commands to a Redis server, again while it does not answer, and explains its errors.

    Args:
        url: such as `redis://localhost:6379/0`; `rediss://` encrypts.
        retries: an error is raised after so many.
        report: called with a text at each failure.

    Raises:
        ValueError: it is not a URL of Redis.
        ImportError: the client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.name = without_password(url)
        try:
            redis = importlib.import_module("redis")
            backoff = importlib.import_module("redis.backoff")
            retry = importlib.import_module("redis.retry").Retry
        except ImportError as error:
            raise ImportError(
                "Redis needs its client, which is not installed; run pip install "
                "'ftmamba[streaming]'"
            ) from error
        self._errors, self._retries, self._report = redis.exceptions, retries, report
        # The base is doubled before the first wait; each wait is drawn, so consumers do not meet.
        waits = backoff.EqualJitterBackoff(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS / 2)
        passing = (self._errors.ConnectionError, self._errors.TimeoutError)
        self._retry = retry(waits, retries, passing)
        # The client itself does not retry: a lost answer must be reported to `RedisStreamSource`.
        self.client: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=retry(backoff.NoBackoff(), 0),
        )

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer; the server may receive the question several times.

        Raises:
            ConnectionError: the server does not answer.
            OSError: the server cannot do it now, such as for lack of memory.
            ValueError: access is denied, or the key holds something else.
        """
        try:
            answer: Answer = self._retry.call_with_retry(question, self._failed)
        except self._errors.RedisError as error:
            raise self._explained(error) from error
        return answer

    def _is_lasting(self, error: Exception) -> bool:
        errors = self._errors
        passing = isinstance(error, errors.ConnectionError | errors.TimeoutError)
        denied = isinstance(error, errors.AuthenticationError | errors.AuthorizationError)
        return denied or not passing

    def _failed(self, error: Exception) -> None:
        if self._is_lasting(error):
            raise error
        self._report(f"Redis at {self.name} does not answer ({error!s:.100})")

    def _explained(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())[:200]
        if not self._is_lasting(error):
            return ConnectionError(
                f"Redis at {self.name} did not answer {self._retries + 1} times ({reason}); what "
                "was not acknowledged comes again: start the server and run this once more"
            )
        if "maxmemory" in str(error):
            return OSError(
                f"Redis at {self.name} has no memory left ({reason}); nothing is lost: raise "
                "maxmemory, or let states expire"
            )
        return ValueError(
            f"Redis at {self.name} refuses ({reason}); check the URL's user, password and number "
            "of the database, and that the keys hold nothing else"
        )


def without_password(url: str) -> str:
    """Return a URL that can be shown; raise ValueError if it is not one of Redis."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"a URL of Redis must begin with {', '.join(f'{name}://' for name in _SCHEMES)}, got "
            f"{parts.scheme!r:.40}; write redis://localhost:6379/0"
        )
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


class RedisStore(StateStore):
    """A store that many processes share; it survives them if the server persists (AOF, RDB).

    If the connection breaks during a put, the retry may find its own version there and return
    False: read the user again, as after every failed put.

    Args:
        url: such as `redis://localhost:6379/0`.
        prefix: of all keys; stores of different models need different ones.
        ttl_seconds: a user expires so long after the last put; 0 for never.
        retries, report: see `RedisConnection`, also for what is raised.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = PREFIX,
        ttl_seconds: float = 0,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._ttl_milliseconds = max(1, round(1000 * check_ttl(ttl_seconds))) if ttl_seconds else 0
        self._prefix = prefix.encode()
        self._connection = RedisConnection(url, retries=retries, report=report)
        self._client = self._connection.client
        self._swap = self._client.register_script(_COMPARE_AND_SWAP)

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        keys = [self._prefix + check_key(key) for key in user_keys]
        answers = self._ask_many(lambda pipe, key: pipe.hmget(key, _FIELDS), keys)
        return [self._stored(key, *answer) for key, answer in zip(user_keys, answers, strict=True)]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        return [answer == 1 for answer in self._ask_many(self._add_swap, puts)]

    def delete(self, user_key: str) -> bool:
        key = self._prefix + check_key(user_key)
        return bool(self._connection.ask(lambda: self._client.delete(key)))

    def sync(self) -> None:
        """Do nothing: durability is the server's own setting (appendfsync)."""

    def __iter__(self) -> Iterator[str]:
        pattern = b"".join(
            b"\\" + bytes([byte]) if byte in b"*?[]\\" else bytes([byte]) for byte in self._prefix
        )
        found: set[bytes] = self._connection.ask(
            lambda: set(self._client.scan_iter(match=pattern + b"*", count=1000))
        )
        return iter([key.removeprefix(self._prefix).decode() for key in found])

    def close(self) -> None:
        self._client.close()

    def _add_swap(self, pipe: Any, put: Put) -> None:
        stored = put.stored
        arguments = [
            str(put.expected_version),
            str(stored.version),
            stored.state,
            json.dumps(stored.event_ids),
            str(self._ttl_milliseconds),
        ]
        self._swap(keys=[self._prefix + check_key(put.user_key)], args=arguments, client=pipe)

    def _ask_many(self, add: Callable[[Any, Any], Any], questions: Sequence[Any]) -> list[Any]:
        """Ask many questions in one round trip, each of them atomic by itself."""

        def ask(some: Sequence[Any]) -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for question in some:
                    add(pipe, question)
                answers: list[Any] = pipe.execute()
            return answers

        answers: list[Any] = []
        for first in range(0, len(questions), _AT_A_TIME):
            answers += self._connection.ask(partial(ask, questions[first : first + _AT_A_TIME]))
        return answers

    def _stored(
        self, user_key: str, version: bytes | None, state: bytes | None, event_ids: bytes | None
    ) -> Stored | None:
        if version is None:
            return None
        try:
            return Stored(int(version), state or b"", tuple(json.loads(event_ids or b"")))
        except ValueError as error:
            raise ValueError(
                f"the value of user {user_key!r:.80} in Redis at {self._connection.name} is not a "
                f"state ({error!s:.100}); use another prefix, or delete the key"
            ) from None


@dataclass(frozen=True)
class Member:
    """A consumer of a stream's group.

    Attributes:
        group: what it has acknowledged is not delivered to any of its consumers again.
        consumer: unique in the group and the same after a restart, which then continues with what
            it had not acknowledged; empty for the name of the machine.
        reclaim_seconds: events that another consumer has not acknowledged for so long are
            delivered here.
    """

    group: str = GROUP
    consumer: str = ""
    reclaim_seconds: float = 60.0

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self.consumer or socket.gethostname()


class RedisStreamSource:
    """Events of a Redis Stream, shared by a group of consumers.

    It delivers first what this consumer has not acknowledged, then what other consumers have not
    for long, then new events. An event without an id gets that of its entry. Entries stay in the
    stream: trim it (XTRIM).

    Args:
        url: of the server.
        stream: its key; created if it does not exist.
        member: of the group, which is created if it does not exist and starts at the first entry.
        follow: wait for more at the end.
        retries, report: see `RedisConnection`.

    Raises:
        ValueError: the key does not hold a stream.
        OSError: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        member: Member | None = None,
        *,
        follow: bool = False,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._stream, self._follow = stream, follow
        self._member = Member() if member is None else member
        # Where to read on in our own unacknowledged entries; empty after the last of them.
        self._own_from = _BEGINNING
        self._reclaim_at = 0.0

        def failed(text: str) -> None:
            # Read our own once more: entries may have been delivered to us and lost on the way.
            self._own_from = _BEGINNING
            report(text)

        self._connection = RedisConnection(url, retries=retries, report=failed)
        self._client = self._connection.client
        try:
            self._connection.ask(self._make_group)
        except (OSError, ValueError):
            self.close()
            raise

    def read(self, most_events: int) -> Batch | None:
        entries = self._own(most_events) or self._left(most_events) or self._new(most_events)
        if not entries and not self._follow:
            return None
        events: list[UserEvent] = []
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
        self._client.close()

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(
                self._stream, self._member.group, id=_BEGINNING, mkstream=True
            )
        except Exception as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _own(self, most: int) -> Entries:
        """Return what a process of this name has read and not acknowledged."""
        if not self._own_from:
            return []
        entries = self._group_read(self._own_from, most, None)
        self._own_from = entries[-1][0].decode() if entries else ""
        return entries

    def _left(self, most: int) -> Entries:
        """Return what other consumers have read long ago and not acknowledged."""
        now = time.monotonic()
        if now < self._reclaim_at:
            return []
        idle = round(1000 * self._member.reclaim_seconds)
        group, name = self._member.group, self._member.name
        answer: Any = self._connection.ask(
            lambda: self._client.xautoclaim(self._stream, group, name, idle, _BEGINNING, count=most)
        )
        entries: Entries = answer[1]
        if not entries:
            self._reclaim_at = now + self._member.reclaim_seconds / 4
        return entries

    def _new(self, most: int) -> Entries:
        # The server blocks for a shorter time than the time-out of the socket.
        return self._group_read(">", most, 1000 if self._follow else None)

    def _group_read(self, after: str, most: int, block: int | None) -> Entries:
        group, name = self._member.group, self._member.name
        answer: Any = self._connection.ask(
            lambda: self._client.xreadgroup(
                group, name, {self._stream: after}, count=most, block=block
            )
        )
        return [entry for _, entries in answer or () for entry in entries]

    def _parsed(self, entry_id: str, fields: Mapping[bytes, bytes] | None) -> UserEvent:
        text = (fields or {}).get(FIELD.encode())
        if text is None:
            raise ValueError(
                f"the entry has no field {FIELD!r}, or was removed from the stream; add events by "
                f"XADD {self._stream} * {FIELD} '{{...}}'"
            )
        return parse_event(text, event_id=entry_id)
