"""Where users' states are kept: the contract of every store, and the store in memory."""

import math
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import NamedTuple

LONGEST_USER_KEY = 1024
"""Bytes in UTF-8."""

ABSENT = 0
"""The version of a user without a stored state."""

_LARGEST_VERSION = 2**63


@dataclass(frozen=True)
class Stored:
    """What a store keeps of one user.

    Attributes:
        version: 1 or more; changed by every put.
        state: bytes of the state, which no store interprets.
        event_ids: ids of the newest events in the state, oldest first, to recognise one that is
            delivered again.
    """

    version: int
    state: bytes
    event_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.version < _LARGEST_VERSION:
            raise ValueError(
                f"the version of a stored state must be in 1..2**63 - 1, got {self.version}; use "
                "next_version(...)"
            )


class Put(NamedTuple):
    """A state to store, if the user's version is still the expected one.

    Attributes:
        user_key: whose state.
        stored: the new state.
        expected_version: of the state to be replaced; `ABSENT` if there must be none.
    """

    user_key: str
    stored: Stored
    expected_version: int


class StateStore(ABC):
    """Keeps one state per user; each method is atomic for each user.

    An expired user counts as absent. A key is a text of 1 to `LONGEST_USER_KEY` bytes.
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


class MemoryStore(StateStore):
    """A store in the memory of this process, lost with it; threads may share it.

    Args:
        most_users: with more, the user who was neither read nor written for longest is dropped and
            starts again with the next event; 0 for no bound.
        ttl_seconds: a user expires so long after the last put; 0 for never.
        clock: returns the seconds.
    """

    def __init__(
        self,
        *,
        most_users: int = 0,
        ttl_seconds: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if most_users < 0:
            raise ValueError(f"most_users must be 0 (no bound) or more, got {most_users}")
        self._most_users = most_users
        self._ttl = check_ttl(ttl_seconds)
        self._clock = clock
        self._lock = RLock()
        # Each state with the time at which it expires.
        self._users: OrderedDict[str, tuple[Stored, float]] = OrderedDict()

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        with self._lock:
            return [self._current(key) for key in user_keys]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        with self._lock:
            return [self._put(put) for put in puts]

    def delete(self, user_key: str) -> bool:
        with self._lock:
            found = self._current(user_key) is not None
            self._users.pop(user_key, None)
            return found

    def sync(self) -> None:
        """Do nothing: memory does not survive a loss of power."""

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            now = self._clock()
            for key in [key for key, (_, expires) in self._users.items() if now >= expires]:
                del self._users[key]
            return iter(list(self._users))

    def close(self) -> None:
        with self._lock:
            self._users.clear()

    def _current(self, user_key: str) -> Stored | None:
        check_key(user_key)
        stored, expires = self._users.get(user_key, (None, 0.0))
        if stored is None or self._clock() >= expires:
            return None
        self._users.move_to_end(user_key)
        return stored

    def _put(self, put: Put) -> bool:
        current = self._current(put.user_key)
        if (current.version if current else ABSENT) != put.expected_version:
            return False
        expires = self._clock() + self._ttl if self._ttl else math.inf
        self._users[put.user_key] = (put.stored, expires)
        self._users.move_to_end(put.user_key)
        if self._most_users and len(self._users) > self._most_users:
            self._users.popitem(last=False)
        return True
