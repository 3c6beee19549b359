"""Where users' states are kept: one contract for every kind of store."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

LONGEST_USER_KEY = 1024
"""Bytes in UTF-8."""

ABSENT = 0
"""The version of a user of whom nothing is stored."""

_LARGEST_VERSION = 2**63


@dataclass(frozen=True)
class Stored:
    """What a store keeps of one user.

    Attributes:
        version: 1 or more; another one after every change.
        state: bytes of the state, which no store looks into.
        event_ids: the newest events that the state has seen, oldest first, by which one that is
            delivered again is recognised.
    """

    version: int
    state: bytes
    event_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.version < _LARGEST_VERSION:
            raise ValueError(
                f"the version of a stored state must be in 1..2**63 - 1, got {self.version}; take "
                "next_version(...)"
            )


class Put(NamedTuple):
    """A state to store, if the user's is still of the expected version.

    Attributes:
        user_key: whose.
        stored: what to keep.
        expected_version: of what is to be replaced; `ABSENT` where nothing is to be there.
    """

    user_key: str
    stored: Stored
    expected_version: int


class StateStore(Protocol):
    """Keeps a state a user; each method is atomic for each user.

    An expired user counts as absent. A key is a text of 1 to `LONGEST_USER_KEY` bytes.
    """

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        """Return what is kept of each user, None of whom nothing is."""
        ...

    def put(self, user_key: str, stored: Stored, expected_version: int) -> bool:
        """Keep a state if nothing has changed since it was read; compare and swap.

        Returns:
            False if another version than the expected one is there; then nothing has changed.
        """
        ...

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        """Do as `put` for each of several users, of which none occurs twice."""
        ...

    def delete(self, user_key: str) -> bool:
        """Forget a user; return whether there was one."""
        ...

    def sync(self) -> None:
        """Return once all that was put would outlive a loss of power, as far as the store can."""
        ...

    def __len__(self) -> int:
        """Return the number of users."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Give every user's key once, in no order; those put meanwhile may be among them."""
        ...

    def close(self) -> None:
        """Give back what the store holds; it is of no use then. Twice does no harm."""
        ...


def next_version(version: int) -> int:
    """Return the version that follows one.

    The first one is the time in nanoseconds: a user who has expired or was deleted comes back with
    another version than before, so that no change to the earlier one can be taken for it.
    """
    return version + 1 if version != ABSENT else time.time_ns()


def check_key(user_key: str) -> bytes:
    """Return a user's key in UTF-8.

    Raises:
        ValueError: it is empty, too long, or no text.
    """
    try:
        data = user_key.encode() if isinstance(user_key, str) else b""
    except UnicodeEncodeError:
        data = b""
    if not 0 < len(data) <= LONGEST_USER_KEY:
        raise ValueError(
            f"a user's key must be a text of 1 to {LONGEST_USER_KEY} bytes, got {user_key!r:.80}; "
            "give users shorter keys"
        )
    return data


def check_puts(puts: Sequence[Put]) -> None:
    """Check the keys of a batch.

    Raises:
        ValueError: one is none, or occurs twice.
    """
    seen: set[str] = set()
    for put in puts:
        check_key(put.user_key)
        if put.user_key in seen:
            raise ValueError(
                f"user {put.user_key!r:.80} occurs twice in one put_many; put one state a user"
            )
        seen.add(put.user_key)


def check_ttl(ttl_seconds: float) -> float:
    """Return the seconds after which what was put is forgotten, 0 for never.

    Raises:
        ValueError: they are negative or not finite.
    """
    if not (math.isfinite(ttl_seconds) and ttl_seconds >= 0):
        raise ValueError(f"ttl_seconds must be 0 (never) or a positive number, got {ttl_seconds!r}")
    return float(ttl_seconds)
