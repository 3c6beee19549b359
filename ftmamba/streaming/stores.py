"""Where users' states are kept: the contract of every store, and SQLite's, in a file or memory."""

import json
import math
import sqlite3
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import NamedTuple

LONGEST_USER_KEY = 1024
"""Bytes in UTF-8."""

ABSENT = 0
"""The version of a user without a stored state."""

IN_MEMORY = ":memory:"
FORMAT_VERSION = 2
LONGEST_WAIT_SECONDS = 10.0
"""For another process that writes to the same file."""

_LARGEST_VERSION = 2**63
_APPLICATION_ID = int.from_bytes(b"FTMS")
_CHECKSUM_BYTES = _LENGTH_BYTES = 4
_SEAL_LENGTH = 8
_TABLES = (
    "CREATE TABLE states (user_key BLOB PRIMARY KEY, version INTEGER, expires REAL, value BLOB)",
    "CREATE INDEX expiring ON states (expires)",
    "CREATE TABLE log (user_key BLOB, event TEXT)",
    "CREATE INDEX log_of ON log (user_key)",
    "CREATE TABLE claims (source TEXT PRIMARY KEY, owner TEXT, until REAL, number INTEGER, "
    "position TEXT)",
)
_REMEDY = "give another file, or delete it to start again"


@dataclass(frozen=True)
class Stored:
    """What a store keeps of one user.

    Attributes:
        version: 1 or more; changed by every put.
        state: bytes of the state, which no store interprets.
        event_ids: ids of the newest events in the state, oldest first, to recognise one that is
            sent twice.
        positions: of each source, by its name, where the first and the newest event of the state
            were; all between them have been processed.
        is_logged: whether the log has all the user's events.
    """

    version: int
    state: bytes
    event_ids: tuple[str, ...] = ()
    positions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_logged: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.version < _LARGEST_VERSION:
            raise ValueError(
                f"the version of a stored state must be in 1..2**63 - 1, got {self.version}; use "
                "next_version(...)"
            )

    def to_bytes(self, user_key: str) -> bytes:
        """Return all but the version, with a checksum over everything and the user's key."""
        facts = [self.event_ids, self.positions, self.is_logged]
        head = json.dumps(facts, separators=(",", ":")).encode()
        body = len(head).to_bytes(_LENGTH_BYTES) + head + self.state
        return _checksum(user_key, self.version, body) + body

    @classmethod
    def from_bytes(cls, user_key: str, version: int, data: bytes) -> "Stored":
        """Read what `to_bytes` wrote; raise ValueError if a bit of it has changed."""
        body = data[_CHECKSUM_BYTES:]
        if data[:_CHECKSUM_BYTES] != _checksum(user_key, version, body):
            raise ValueError("its checksum is another")
        end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES])
        event_ids, found, is_logged = json.loads(body[_LENGTH_BYTES:end])
        positions = {source: (first, newest) for source, (first, newest) in found.items()}
        return cls(version, body[end:], tuple(event_ids), positions, is_logged)


def _checksum(user_key: str, version: int, body: bytes) -> bytes:
    start = zlib.crc32(f"{version} {user_key}".encode())
    return zlib.crc32(body, start).to_bytes(_CHECKSUM_BYTES)


def _sealed(text: str) -> str:
    """Put a checksum before a text."""
    return f"{zlib.crc32(text.encode()):0{_SEAL_LENGTH}x}{text}"


class Put(NamedTuple):
    """A state to store, if the user's version is still the expected one.

    Attributes:
        user_key: whose state.
        stored: the new state.
        expected_version: of the state to be replaced; `ABSENT` if there must be none.
        events: to append to the user's log.
        is_start: whether the user starts with it, so the log is emptied first.
    """

    user_key: str
    stored: Stored
    expected_version: int
    events: Sequence[str] = ()
    is_start: bool = False


class Claim(NamedTuple):
    """The answer to a claim of a source.

    Attributes:
        owner: who has the source now.
        position: up to which its events are in the states; empty for none.
    """

    owner: str
    position: str


class SupersededError(Exception):
    """A source was claimed by another consumer, or the store has lost what was written to it."""


class StateStore(ABC):
    """Keeps one state per user; each method is atomic for each user.

    An expired user counts as absent. A key is a text of 1 to `LONGEST_USER_KEY` bytes.

    A source has one consumer at a time: after `claim`, whatever is written with this object is
    refused with `SupersededError` once another consumer has claimed the source.
    """

    @abstractmethod
    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        """Return what is stored of each user, None of absent ones."""

    @abstractmethod
    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        """Store a state for each of several users, of which none occurs twice.

        Compare and swap: a put whose expected version is not the stored one changes nothing and
        returns False.
        """

    @abstractmethod
    def log(self, user_key: str) -> list[str]:
        """Return the events in a user's log, in the order of arrival."""

    @abstractmethod
    def claim(self, source: str, owner: str, seconds: float, instead_of: str = "") -> Claim:
        """Claim a source, unless another consumer has written for it in its last seconds.

        Args:
            source: its name.
            owner: unique among all consumers.
            seconds: until others may claim it, from now and from each write.
            instead_of: an owner that is known to be gone.
        """

    @abstractmethod
    def advance(self, position: str) -> None:
        """Record the position up to which the claimed source's events are in the states."""

    @abstractmethod
    def release(self) -> None:
        """Let others claim the source at once."""

    @abstractmethod
    def n_vanished(self) -> int:
        """Return how many users' states are gone that nobody deleted, as far as it can tell."""

    @abstractmethod
    def forget(self, *, positions: bool) -> None:
        """Accept that states are gone; forget the positions of all sources, if asked."""

    @abstractmethod
    def delete(self, user_key: str) -> bool:
        """Delete a user; return whether there was one."""

    @abstractmethod
    def sync(self) -> None:
        """Return once all puts would survive a loss of power, as far as the store can."""

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Iterate over the user keys, in no order; it may include users put meanwhile."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. The store cannot be used afterwards; closing twice is fine."""

    def put(self, user_key: str, stored: Stored, expected_version: int) -> bool:
        """Store one state, as `put_many` does."""
        return self.put_many([Put(user_key, stored, expected_version)])[0]

    def __len__(self) -> int:
        """Return the number of users."""
        return sum(1 for _ in self)


def next_version(version: int) -> int:
    """Return the version that follows one.

    The first version is the time in nanoseconds: a user who expired or was deleted returns with
    another version than before, so a put based on the old state fails.
    """
    return version + 1 if version != ABSENT else time.time_ns()


def check_key(user_key: str) -> bytes:
    """Return a user's key in UTF-8; raise ValueError if it is empty, too long, or not a text."""
    try:
        data = user_key.encode() if isinstance(user_key, str) else b""
    except UnicodeEncodeError:
        data = b""
    if not 0 < len(data) <= LONGEST_USER_KEY:
        raise ValueError(
            f"a user's key must be a text of 1 to {LONGEST_USER_KEY} bytes, got {user_key!r:.80}; "
            "use shorter keys"
        )
    return data


def check_puts(puts: Sequence[Put]) -> None:
    """Raise ValueError if a key of a batch is invalid or occurs twice."""
    seen: set[str] = set()
    for put in puts:
        check_key(put.user_key)
        if put.user_key in seen:
            raise ValueError(
                f"user {put.user_key!r:.80} occurs twice in one put_many; put one state per user"
            )
        seen.add(put.user_key)


def check_ttl(ttl_seconds: float) -> float:
    """Return the seconds after which a state expires; raise ValueError if they are negative."""
    if not (math.isfinite(ttl_seconds) and ttl_seconds >= 0):
        raise ValueError(f"ttl_seconds must be 0 (never) or a positive number, got {ttl_seconds!r}")
    return float(ttl_seconds)


class SQLiteStore(StateStore):
    """A store in an SQLite file, which threads and processes may share, or in memory.

    What `put_many` has stored is on the disk when it returns. A process that is killed, or a loss
    of power, leaves the old states or the new ones.

    Args:
        path: of the file, created if it does not exist; by default in this process's memory.
        ttl_seconds: a user expires so long after the last put; 0 for never.
        clock: returns UTC seconds.

    Raises:
        ValueError: the file holds something else, or is damaged.
        OSError: it cannot be opened or written, such as on a full disk.
    """

    def __init__(
        self,
        path: str | Path = IN_MEMORY,
        *,
        ttl_seconds: float = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = str(path)
        self._ttl = check_ttl(ttl_seconds)
        self._clock = clock
        self._lock = RLock()
        # The source, the owner, the seconds, and the number of this claim.
        self._claimed: tuple[str, str, float, int] | None = None
        if path != IN_MEMORY:
            # States are personal: a file that SQLite makes itself could be read by everybody.
            Path(path).touch(0o600)
        with self._errors_in_words():
            self._file = sqlite3.connect(
                path, timeout=LONGEST_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._transaction():
                self._make_table()
            with self._errors_in_words():
                if (found := self._file.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                    raise sqlite3.DatabaseError(found)
                # SQLite does not wait here: whoever holds the file opened it, and sets the mode.
                with suppress(sqlite3.OperationalError):
                    self._file.execute("PRAGMA journal_mode = WAL")
                self._file.execute("PRAGMA synchronous = FULL")
        except (OSError, ValueError):
            self.close()
            raise

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        query = "SELECT user_key, version, value FROM states WHERE user_key = ? AND expires > ?"
        keys = [check_key(key) for key in user_keys]
        with self._lock, self._errors_in_words():
            now = self._clock()
            rows = [self._file.execute(query, (key, now)).fetchone() for key in keys]
        return [row and self._stored(*row) for row in rows]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        with self._transaction():
            self._extend()
            if self._ttl:
                now = (self._clock(),)
                expired = "FROM states WHERE expires <= ?"
                self._file.execute(
                    f"DELETE FROM log WHERE user_key IN (SELECT user_key {expired})", now
                )
                self._file.execute(f"DELETE {expired}", now)
            return [self._put(put) for put in puts]

    def delete(self, user_key: str) -> bool:
        query = "DELETE FROM states WHERE user_key = ? AND expires > ?"
        key = check_key(user_key)
        with self._transaction():
            self._file.execute("DELETE FROM log WHERE user_key = ?", (key,))
            return self._file.execute(query, (key, self._clock())).rowcount == 1

    def log(self, user_key: str) -> list[str]:
        query = "SELECT event FROM log WHERE user_key = ? ORDER BY rowid"
        with self._lock, self._errors_in_words():
            rows = self._file.execute(query, (check_key(user_key),)).fetchall()
        return [self._unsealed(text) for (text,) in rows]

    def claim(self, source: str, owner: str, seconds: float, instead_of: str = "") -> Claim:
        query = "SELECT owner, until, number, position FROM claims WHERE source = ?"
        with self._transaction():
            row = self._file.execute(query, (source,)).fetchone()
            other, until, number, position = row or ("", 0.0, 0, _sealed(""))
            now = self._clock()
            if until > now and other not in (owner, instead_of):
                return Claim(other, "")
            values = (source, owner, now + seconds, number + 1, position)
            self._file.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", values)
            self._claimed = source, owner, seconds, number + 1
            return Claim(owner, self._unsealed(position))

    def advance(self, position: str) -> None:
        with self._transaction():
            self._extend()
            if self._claimed:
                query = "UPDATE claims SET position = ? WHERE source = ?"
                self._file.execute(query, (_sealed(position), self._claimed[0]))

    def release(self) -> None:
        if self._claimed:
            query = "UPDATE claims SET until = 0 WHERE source = ? AND number = ?"
            with self._transaction():
                self._file.execute(query, (self._claimed[0], self._claimed[3]))
            self._claimed = None

    def n_vanished(self) -> int:
        """Return 0: the file is checked when it is opened."""
        return 0

    def forget(self, *, positions: bool) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing: a put is on the disk when it returns."""

    def __iter__(self) -> Iterator[str]:
        with self._lock, self._errors_in_words():
            query = "SELECT user_key FROM states WHERE expires > ?"
            rows = self._file.execute(query, (self._clock(),)).fetchall()
        return iter([key.decode() for (key,) in rows])

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _put(self, put: Put) -> bool:
        query = "SELECT version FROM states WHERE user_key = ? AND expires > ?"
        key, now, stored = check_key(put.user_key), self._clock(), put.stored
        row = self._file.execute(query, (key, now)).fetchone()
        if (row[0] if row else ABSENT) != put.expected_version:
            return False
        expires = now + self._ttl if self._ttl else math.inf
        values = (key, stored.version, expires, stored.to_bytes(put.user_key))
        self._file.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", values)
        if put.is_start:
            self._file.execute("DELETE FROM log WHERE user_key = ?", (key,))
        events = [(key, _sealed(event)) for event in put.events]
        self._file.executemany("INSERT INTO log VALUES (?, ?)", events)
        return True

    def _extend(self) -> None:
        """Extend the claim, if there is one; raise `SupersededError` if it is another's now."""
        if not self._claimed:
            return
        source, _, seconds, number = self._claimed
        query = "UPDATE claims SET until = ? WHERE source = ? AND number = ?"
        if not self._file.execute(query, (self._clock() + seconds, source, number)).rowcount:
            raise SupersededError(f"another consumer has claimed {source} in {self._path!r}")

    def _stored(self, key: bytes, version: int, value: bytes) -> Stored:
        try:
            return Stored.from_bytes(key.decode(), version, value)
        except ValueError as error:
            raise ValueError(
                f"the state of user {key.decode(errors='replace')!r:.80} in {self._path!r} is "
                f"damaged ({error!s:.100}); {_REMEDY}"
            ) from None

    def _unsealed(self, text: str) -> str:
        if _sealed(text[_SEAL_LENGTH:]) != text:
            raise ValueError(f"{self._path!r} is damaged ({text!r:.80}); {_REMEDY}")
        return text[_SEAL_LENGTH:]

    def _make_table(self) -> None:
        """Make the table of a new file; raise ValueError for a file of something else."""

        def number(query: str) -> int:
            return int(self._file.execute(query).fetchone()[0])

        is_new = number("SELECT count(*) FROM sqlite_master") == 0
        made_by, version = number("PRAGMA application_id"), number("PRAGMA user_version")
        if is_new and made_by == version == 0:
            self._file.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._file.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for table in _TABLES:
                self._file.execute(table)
        elif made_by != _APPLICATION_ID:
            raise ValueError(f"{self._path!r} holds other tables than users' states; {_REMEDY}")
        elif version != FORMAT_VERSION:
            raise ValueError(
                f"{self._path!r} has format {version}, this ftmamba reads {FORMAT_VERSION}; "
                f"{_REMEDY}"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._errors_in_words(), self._file:
            self._file.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"the states in {self._path!r} cannot be read or written ({error}); nothing is "
                "lost: free some space, end the process that keeps the file locked, or give the "
                "path of a file"
            ) from error
        except sqlite3.ProgrammingError as error:
            raise ValueError(f"the states in {self._path!r} are closed; open them again") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self._path!r} is no file of users' states or damaged ({error}); {_REMEDY}"
            ) from error
