"""Users' states in the memory of this process."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import RLock

from ftmamba.streaming.store import ABSENT, Put, Stored, check_key, check_puts, check_ttl


class MemoryStore:
    """A store that is gone with its process; threads may share it.

    Args:
        most_users: beyond so many, the user who was neither read nor written for longest is
            forgotten and starts anew when events come; 0 for no bound.
        ttl_seconds: a user is forgotten so long after the last put; 0 for never.
        clock: tells the seconds.
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
        # The time at which each expires stands beside it.
        self._kept: OrderedDict[str, tuple[Stored, float]] = OrderedDict()

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        with self._lock:
            return [self._current(key) for key in user_keys]

    def put(self, user_key: str, stored: Stored, expected_version: int) -> bool:
        return self.put_many([Put(user_key, stored, expected_version)])[0]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        with self._lock:
            return [self._put(put) for put in puts]

    def delete(self, user_key: str) -> bool:
        with self._lock:
            found = self._current(user_key) is not None
            self._kept.pop(user_key, None)
            return found

    def sync(self) -> None:
        """Do nothing: memory outlives no loss of power."""

    def __len__(self) -> int:
        with self._lock:
            self._forget_expired()
            return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._forget_expired()
            return iter(list(self._kept))

    def close(self) -> None:
        with self._lock:
            self._kept.clear()

    def _current(self, user_key: str) -> Stored | None:
        check_key(user_key)
        stored, expires = self._kept.get(user_key, (None, 0.0))
        if stored is None or self._clock() >= expires:
            return None
        self._kept.move_to_end(user_key)
        return stored

    def _put(self, put: Put) -> bool:
        current = self._current(put.user_key)
        if (current.version if current else ABSENT) != put.expected_version:
            return False
        expires = self._clock() + self._ttl if self._ttl else float("inf")
        self._kept[put.user_key] = (put.stored, expires)
        self._kept.move_to_end(put.user_key)
        if self._most_users and len(self._kept) > self._most_users:
            self._kept.popitem(last=False)
        return True

    def _forget_expired(self) -> None:
        now = self._clock()
        for key in [key for key, (_, expires) in self._kept.items() if now >= expires]:
            del self._kept[key]
