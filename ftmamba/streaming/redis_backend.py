"""Redis: users' states that many processes share, and events from a stream."""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ftmamba.streaming.events import Refused, UserEvent, parse_event
from ftmamba.streaming.sources import Batch
from ftmamba.streaming.stores import (
    Claim,
    Put,
    StateStore,
    Stored,
    SupersededError,
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
_AT_A_TIME = 64
_FIELDS = ("version", "value")
_BEGINNING = "0-0"
_SECONDS_BETWEEN_CHECKS = 5.0

# A write is refused unless the number of writes for the source is the one that its consumer knows:
# another consumer has written since, or the server has lost writes and is back at an earlier one.
_CHECKED = """
local source = ARGV[1]
if source ~= '' then
  if redis.call('HGET', KEYS[1], 'writes ' .. source) ~= ARGV[2] then
    return {-1}
  end
  redis.call('HINCRBY', KEYS[1], 'writes ' .. source, 1)
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
"""
# Versions are compared as texts: a number in Lua has only 53 bits.
_PUT = (
    _CHECKED
    + """
local done, ttl, at = {}, ARGV[5], 6
for k = 3, #KEYS, 2 do
  local version, n_events = redis.call('HGET', KEYS[k], 'version'), tonumber(ARGV[at + 4])
  local is_due = (version or '0') == ARGV[at]
  if is_due then
    redis.call('HSET', KEYS[k], 'version', ARGV[at + 1], 'value', ARGV[at + 2])
    if ARGV[at + 3] == '1' then
      redis.call('DEL', KEYS[k + 1])
    end
    for event = 1, n_events do
      redis.call('RPUSH', KEYS[k + 1], ARGV[at + 4 + event])
    end
    if not version then
      redis.call('HINCRBY', KEYS[1], 'users', 1)
    end
    for _, key in ipairs({KEYS[k], KEYS[k + 1]}) do
      if ttl == '0' then
        redis.call('PERSIST', key)
      else
        redis.call('PEXPIRE', key, ttl)
      end
    end
  end
  done[#done + 1] = is_due and 1 or 0
  at = at + 5 + n_events
end
return done
"""
)
_ADVANCE = _CHECKED + "redis.call('HSET', KEYS[1], 'position ' .. source, ARGV[5]) return {1}"
_CLAIM = """
local owner, source = redis.call('GET', KEYS[2]), ARGV[1]
if owner and owner ~= ARGV[2] and owner ~= ARGV[4] then
  return {owner}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {ARGV[2], redis.call('HGET', KEYS[1], 'position ' .. source) or '',
  redis.call('HINCRBY', KEYS[1], 'writes ' .. source, 1)}
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_DELETE = """
if redis.call('DEL', KEYS[1]) == 0 then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('HINCRBY', KEYS[3], 'users', -1)
return 1
"""

Answer = TypeVar("Answer")
Facts = dict[str, Any]
Entries = list[tuple[bytes, dict[bytes, bytes]]]


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
        self._passing: tuple[type[Exception], ...] = (
            self._errors.ConnectionError,
            self._errors.TimeoutError,
            self._errors.ReadOnlyError,
            self._errors.TryAgainError,
            self._errors.MasterDownError,
            self._errors.ClusterDownError,
        )
        self._retry = retry(waits, retries, self._passing)
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

    def check(self, *, expiring: bool = False) -> Facts:
        """Return what the server says of itself; raise ValueError if it may evict what it keeps.

        Args:
            expiring: whether keys expire, which lets a policy `volatile-...` evict them.
        """
        try:
            facts: Facts = self.ask(self.client.info)
        except ValueError as error:
            if "NOPERM" not in str(error):
                raise
            self._report(f"Redis at {self.name} does not allow INFO, so its settings are unknown")
            return {}
        policy = str(facts.get("maxmemory_policy", "noeviction"))
        if (
            facts.get("maxmemory")
            and policy != "noeviction"
            and (expiring or not policy.startswith("volatile"))
        ):
            raise ValueError(
                f"Redis at {self.name} may evict users' states and events: its maxmemory-policy is "
                f"{policy}; run CONFIG SET maxmemory-policy noeviction, or use a server of its own"
            )
        return facts

    def _is_lasting(self, error: Exception) -> bool:
        errors = self._errors
        denied = isinstance(error, errors.AuthenticationError | errors.AuthorizationError)
        return denied or not isinstance(error, self._passing)

    def _failed(self, error: Exception) -> None:
        if self._is_lasting(error):
            raise error
        # After a failover the name may belong to another server.
        self.client.connection_pool.disconnect()
        self._report(f"Redis at {self.name} does not answer ({error!s:.100})")

    def _explained(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, self._errors.ReadOnlyError):
            return OSError(
                f"Redis at {self.name} is a replica, which refuses writes ({reason}); nothing is "
                "lost: give the URL of the primary"
            )
        if not self._is_lasting(error):
            return ConnectionError(
                f"Redis at {self.name} did not answer {self._retries + 1} times ({reason}); what "
                "was not acknowledged comes again: start the server and run this once more"
            )
        if "MISCONF" in str(error):
            return OSError(
                f"Redis at {self.name} cannot save to its disk ({reason}); nothing is lost: free "
                "some space there and run this once more"
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
    False, or raise `SupersededError`: read the user again, as after every failed put.

    Args:
        url: such as `redis://localhost:6379/0`.
        prefix: of the states' keys; stores of different models need different ones.
        ttl_seconds: a user expires so long after the last put; 0 for never.
        replicas: `sync` returns once so many replicas have what was put.
        retries, report: see `RedisConnection`, also for what is raised.

    Raises:
        ValueError: the server is set to evict states.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = PREFIX,
        ttl_seconds: float = 0,
        replicas: int = 0,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._ttl_milliseconds = max(1, round(1000 * check_ttl(ttl_seconds))) if ttl_seconds else 0
        self._prefix, self._replicas, self._report = prefix.encode(), replicas, report
        self._connection = RedisConnection(url, retries=retries, report=report)
        self._client = self._connection.client
        script = self._client.register_script
        self._put, self._advance, self._claim = map(script, (_PUT, _ADVANCE, _CLAIM))
        self._release, self._delete = map(script, (_RELEASE, _DELETE))
        # The source, the owner, milliseconds, and the number of writes for the source.
        self._claimed: tuple[str, str, int, int] | None = None
        self._check_at = 0.0

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        keys = [self._prefix + check_key(key) for key in user_keys]

        def ask(some: Sequence[bytes]) -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hmget(key, _FIELDS)
                answers: list[Any] = pipe.execute()
            return answers

        answers: list[Any] = []
        for first in range(0, len(keys), _AT_A_TIME):
            answers += self._connection.ask(partial(ask, keys[first : first + _AT_A_TIME]))
        return [self._stored(key, *answer) for key, answer in zip(user_keys, answers, strict=True)]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        done: list[bool] = []
        for first in range(0, len(puts), _AT_A_TIME):
            keys: list[bytes] = []
            values: list[Any] = [self._ttl_milliseconds]
            for put in puts[first : first + _AT_A_TIME]:
                key, stored = self._prefix + check_key(put.user_key), put.stored
                keys += key, b"log:" + key
                values += put.expected_version, stored.version, stored.to_bytes(put.user_key)
                values += int(put.is_start), len(put.events), *put.events
            done += [answer == 1 for answer in self._write(self._put, keys, values)]
        return done

    def delete(self, user_key: str) -> bool:
        key = self._prefix + check_key(user_key)
        keys = [key, b"log:" + key, self._meta]
        return bool(self._connection.ask(lambda: self._delete(keys=keys)))

    def log(self, user_key: str) -> list[str]:
        key = b"log:" + self._prefix + check_key(user_key)
        events: list[bytes] = self._connection.ask(lambda: self._client.lrange(key, 0, -1))
        return [event.decode() for event in events]

    def claim(self, source: str, owner: str, seconds: float, instead_of: str = "") -> Claim:
        facts = self._connection.check(expiring=bool(self._ttl_milliseconds))
        if not facts.get("aof_enabled", 1) and not self._check_at:
            self._report(
                f"Redis at {self._connection.name} has no append-only file (appendonly no): after "
                "a crash, newer states are computed again if the source still has the events"
            )
        self._check_at = time.monotonic() + _SECONDS_BETWEEN_CHECKS
        milliseconds = max(1, round(1000 * seconds))
        keys, values = self._claim_keys(source), [source, owner, milliseconds, instead_of]
        answer: list[Any] = self._connection.ask(lambda: self._claim(keys=keys, args=values))
        found = answer[0].decode()
        if len(answer) == 1:
            return Claim(found, "")
        self._claimed = source, owner, milliseconds, int(answer[2])
        return Claim(found, answer[1].decode())

    def advance(self, position: str) -> None:
        self._write(self._advance, [], [position])

    def release(self) -> None:
        if self._claimed:
            source, owner, *_ = self._claimed
            keys = self._claim_keys(source)[1:]
            self._connection.ask(lambda: self._release(keys=keys, args=[owner]))
            self._claimed = None

    def n_vanished(self) -> int:
        """Count the keys of users, and compare with how many were made."""
        if self._ttl_milliseconds:
            return 0
        made = self._connection.ask(lambda: self._client.hget(self._meta, "users"))
        return max(0, int(made or 0) - len(self))

    def forget(self, *, positions: bool) -> None:
        names = self._connection.ask(lambda: self._client.hkeys(self._meta))
        own = self._claimed[0].encode() if self._claimed else b""
        for name in [name for name in names if positions and name.startswith(b"position ")]:
            self._connection.ask(partial(self._client.hdel, self._meta, name))
            # A consumer of another source has to begin again, too.
            if (source := name.removeprefix(b"position ")) != own:
                self._connection.ask(
                    partial(self._client.hincrby, self._meta, b"writes " + source, 1)
                )
        self._connection.ask(lambda: self._client.hset(self._meta, "users", len(self)))

    def sync(self) -> None:
        """Check that no state was evicted, and wait for replicas.

        Durability on the server's own disk is its setting (appendfsync).
        """
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _SECONDS_BETWEEN_CHECKS
            self._connection.check(expiring=bool(self._ttl_milliseconds))
        if self._replicas:
            wait = partial(self._client.wait, self._replicas, round(1000 * TIMEOUT_SECONDS / 2))
            if (found := self._connection.ask(wait)) < self._replicas:
                raise OSError(
                    f"{found} of {self._replicas} replicas of Redis at {self._connection.name} "
                    "have the states; nothing is lost: start the others, or ask for fewer replicas"
                )

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

    @property
    def _meta(self) -> bytes:
        """The key of what is not a user's."""
        return b"sources:" + self._prefix

    def _claim_keys(self, source: str) -> list[bytes]:
        return [self._meta, b"claim:" + self._prefix + source.encode()]

    def _write(self, script: Any, keys: Sequence[bytes], values: Sequence[Any]) -> list[int]:
        """Run a script that writes for the claimed source; raise `SupersededError`."""
        source, owner, milliseconds, number = self._claimed or ("", "", 0, 0)
        keys = [*self._claim_keys(source), *keys]
        values = [source, number, owner, milliseconds, *values]
        answers: list[int] = self._connection.ask(lambda: script(keys=keys, args=values))
        if answers == [-1]:
            raise SupersededError(
                f"another consumer has claimed {source} in Redis at {self._connection.name}, or "
                "its states are older than what was written"
            )
        if self._claimed:
            self._claimed = source, owner, milliseconds, number + 1
        return answers

    def _stored(self, user_key: str, version: bytes | None, value: bytes | None) -> Stored | None:
        if version is None:
            return None
        try:
            return Stored.from_bytes(user_key, int(version), value or b"")
        except ValueError as error:
            raise ValueError(
                f"the value of user {user_key!r:.80} in Redis at {self._connection.name} is not a "
                f"state ({error!s:.100}); use another prefix, or delete the key"
            ) from None


class RedisStreamSource:
    """Events of a Redis Stream, in its order.

    A consumer group has the position that was acknowledged, for this source and for XINFO GROUPS;
    nothing is read through it. An event without an id gets that of its entry. Entries stay in the
    stream: trim it (XTRIM).

    Args:
        url: of the server.
        stream: its key.
        group: keeps the position.
        follow: wait for more at the end.
        retries, report: see `RedisConnection`.

    Raises:
        ValueError: the key does not hold a stream, or the server is set to evict it.
        OSError: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        group: str = GROUP,
        follow: bool = False,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._stream, self._group, self._follow = stream, group, follow
        self._connection = RedisConnection(url, retries=retries, report=report)
        self._client = self._connection.client
        # Entries up to `at`, so many, are read or known to be lost; so are deleted ones up to
        # `removed`. Whether there was a stream, and the loss that was reported last.
        self._n_read, self._removed, self._was_there, self._reported = 0, "", False, ""
        try:
            self._connection.check()
            self._at = self.bookmark
        except (OSError, ValueError):
            self.close()
            raise

    @property
    def name(self) -> str:
        database = self._client.connection_pool.connection_kwargs.get("db", 0)
        return f"stream {database}/{self._stream}"

    @property
    def bookmark(self) -> str:
        groups: list[Facts] = self._ask(lambda: self._client.xinfo_groups(self._stream), [])
        found = [one for one in groups if one["name"] == self._group.encode()]
        return _position(found[0]["last-delivered-id"]) if found else ""

    def seek(self, position: str) -> None:
        facts = self._facts()
        self._at, _, n_read = position.partition(" ")
        self._reported, self._was_there = "", self._was_there or bool(facts)
        # A new reader of a stream that was trimmed has lost nothing.
        self._n_read = int(n_read or _n_removed(facts))
        self._removed = "" if n_read else _position(facts.get("max-deleted-entry-id", b""))

    def lost_after(self, position: str, /) -> str:
        at, _, n_read = position.partition(" ")
        return self._lost(self._facts(), at, max(self._at, at), int(n_read or 0))

    def read(self, most_events: int) -> Batch | None:
        """Return the next entries, or how the stream has lost some before they were read."""
        for is_last in (not self._follow, True):
            facts, entries = self._next(most_events)
            lost = self._lost(facts, max(self._at, self._removed), self._at, self._n_read)
            if lost and lost != self._reported:
                self._reported, self._was_there = lost, bool(facts)
                self._n_read = _n_removed(facts)
                self._removed = _position(facts.get("max-deleted-entry-id", b""))
                return Batch((), [Refused("removed", lost)], self._position())
            if entries:
                return self._batch(entries)
            if not is_last:
                self._wait()
        return Batch(()) if self._follow else None

    def acknowledge(self, batch: Batch) -> None:
        entry_id = _entry_id(batch.position.partition(" ")[0])
        try:
            self._ask(lambda: self._client.xgroup_setid(self._stream, self._group, entry_id), None)
        except ValueError as error:
            if "NOGROUP" not in str(error):
                raise
            self._ask(lambda: self._client.xgroup_create(self._stream, self._group, entry_id), None)

    def close(self) -> None:
        self._client.close()

    def _ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """Return the answer, or another one if there is no stream."""
        try:
            return self._connection.ask(question)
        except ValueError as error:
            if "no such key" in str(error) or "requires the key to exist" in str(error):
                return otherwise
            raise

    def _facts(self) -> Facts:
        return self._ask(lambda: self._client.xinfo_stream(self._stream), {})

    def _next(self, most: int) -> tuple[Facts, Entries]:
        """Return in one step what the stream says of itself and the next entries."""

        def ask() -> list[Any]:
            with self._client.pipeline() as pipe:
                pipe.xinfo_stream(self._stream)
                pipe.xread({self._stream: _entry_id(self._at)}, count=most)
                answers: list[Any] = pipe.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and "no such key" not in str(answer):
                    raise answer
            return answers

        facts, streams = self._connection.ask(ask)
        entries = [entry for _, found in streams or () for entry in found]
        return {} if isinstance(facts, Exception) else facts, entries

    def _wait(self) -> None:
        """Wait for an entry, for a shorter time than the time-out of the socket."""
        after = {self._stream: _entry_id(self._at)}
        try:
            self._connection.ask(lambda: self._client.xread(after, count=1, block=1000))
        except ValueError as error:
            if "UNBLOCKED" not in str(error):  # The server has become a replica.
                raise

    def _lost(self, facts: Facts, at: str, newest: str, n_read: int) -> str:
        """Return how entries after a position were lost, given the newest that was read."""
        name = f"stream {self._stream} in Redis at {self._connection.name}"
        if not facts:
            is_gone = self._was_there or newest
            return f"{name} is gone: it was deleted, or its server has lost it" * bool(is_gone)
        self._was_there = True
        if (last := _position(facts["last-generated-id"])) < newest:
            return (
                f"{name} has {last or 'nothing'} as its newest entry, older than {newest}, which "
                "was read before: it was made again, or its server has lost the newer ones"
            )
        if facts.get("entries-added", n_read) < n_read:
            return f"{name} was deleted and made again"
        n_removed = _n_removed(facts) - n_read
        if n_removed > 0 or _position(facts.get("max-deleted-entry-id", b"")) > at:
            return f"{max(n_removed, 1)} or more entries of {name} were removed before being read"
        return ""

    def _position(self) -> str:
        return f"{self._at} {self._n_read:020}"

    def _batch(self, entries: Entries) -> Batch:
        events: list[UserEvent] = []
        problems: list[Refused] = []
        for entry_id, fields in entries:
            name, self._at = entry_id.decode(), _position(entry_id)
            text = fields.get(FIELD.encode())
            try:
                if text is None:
                    raise ValueError(
                        f"the entry has no field {FIELD!r}; add events by XADD {self._stream} * "
                        f"{FIELD} '{{...}}'"
                    )
                events.append(parse_event(text, event_id=name, position=self._at))
            except ValueError as error:
                message = str(fields) if text is None else text.decode(errors="replace")
                where = f"stream {self._stream}, entry {name}"
                problems.append(Refused("malformed", f"{where}: {error}", message))
        self._n_read += len(entries)
        return Batch(events, problems, self._position())


class RefusedStream:
    """Appends refused messages to a stream, each with the fields `kind`, `reason` and `event`.

    Args:
        url: of the server.
        stream: its key; created with the first message.
        retries, report: see `RedisConnection`.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        retries: int = RETRIES,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._stream = stream
        self._connection = RedisConnection(url, retries=retries, report=report)

    def __call__(self, refused: Sequence[Refused]) -> None:
        """Write them; if the connection breaks, some may be there twice."""

        def ask() -> None:
            with self._connection.client.pipeline(transaction=False) as pipe:
                for one in refused:
                    fields = {"kind": one.kind, "reason": one.reason, FIELD: one.message}
                    # A text of JSON may hold what UTF-8 cannot.
                    pipe.xadd(
                        self._stream, {k: v.encode(errors="replace") for k, v in fields.items()}
                    )
                pipe.execute()

        self._connection.ask(ask)


def _n_removed(facts: Facts) -> int:
    """Return how many entries were removed from a stream; 0 before Redis 7, which does not say."""
    length = int(facts.get("length", 0))
    return max(0, int(facts.get("entries-added", length)) - length)


def _position(entry_id: bytes) -> str:
    """Write the id of an entry so that ids sort as texts; empty for none."""
    numbers = [int(part) for part in entry_id.split(b"-") if part]
    return "-".join(f"{number:020}" for number in numbers) if any(numbers) else ""


def _entry_id(position: str) -> str:
    return "-".join(str(int(part)) for part in position.split("-")) if position else _BEGINNING
