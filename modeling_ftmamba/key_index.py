"""From a key to its row, for millions of keys, without an object for each.

Shapes: N keys, Z bytes.
"""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .string_table import TextTable, text_table

LONGEST_KEY = 4096
"""Bytes."""

_WORD = 8
_SEED, _PRIME = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


class KeyIndex:
    """Finds the rows of keys by a hash of their bytes.

    The hash is no secret, so somebody may choose keys that share one; then a dict does it.

    Attributes:
        repeated: a key that occurs twice, None where there is none.

    Args:
        keys: N keys.

    Raises:
        ValueError: a key is longer than `LONGEST_KEY`.
    """

    def __init__(self, keys: TextTable) -> None:
        self._keys = keys
        lengths_N = np.diff(keys.offsets)
        if len(keys) and lengths_N.max() > LONGEST_KEY:
            row = int(lengths_N.argmax())
            raise ValueError(
                f"the key in row {row} has {lengths_N[row]} bytes, at most {LONGEST_KEY} are read; "
                "give the items shorter keys"
            )
        self._hash_N = _hashes(keys.packed, keys.offsets)
        sorted_N = np.sort(self._hash_N)
        self._alike = bool((sorted_N[1:] == sorted_N[:-1]).any())
        self.repeated = self._repeated() if self._alike else None

    def rows(self, keys: Iterable[str]) -> list[int | None]:
        """Return the row of each key, None where there is none."""
        if self._alike:
            return [self._row_of.get(key) for key in keys]
        asked = list(keys)
        table = text_table(asked)
        order_N, sorted_N = self._sorted
        places = np.searchsorted(sorted_N, _hashes(table.packed, table.offsets))
        if not len(order_N):
            return [None] * len(asked)
        found = order_N[np.minimum(places, len(order_N) - 1)].tolist()
        return [
            row if self._keys[row] == key else None for row, key in zip(found, asked, strict=True)
        ]

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order_N = np.argsort(self._hash_N)
        return order_N, self._hash_N[order_N]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self._keys)}

    def _repeated(self) -> str | None:
        if len(self._row_of) == len(self._keys):
            return None
        return next(key for row, key in enumerate(self._keys) if self._row_of[key] != row)


def _hashes(packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of each key's bytes (N,), taken eight at a time."""
    starts_N, lengths_N = offsets[:-1], np.diff(offsets)
    # Eight bytes from any place on, as one number.
    padded = np.concatenate([packed, np.zeros(_WORD, np.uint8)])
    words = np.ndarray(len(packed) + 1, np.dtype("<u8"), padded.data, strides=(1,))
    hash_N = lengths_N.astype(np.uint64) * _SEED
    longer = np.argsort(lengths_N, kind="stable")
    sorted_N = lengths_N[longer]
    for place in range(0, int(sorted_N[-1]) if len(sorted_N) else 0, _WORD):
        first = np.searchsorted(sorted_N, place, side="right")
        longer, sorted_N = longer[first:], sorted_N[first:]
        absent = np.maximum(place + _WORD - sorted_N, 0).astype(np.uint64) * np.uint64(8)
        mixed = (hash_N[longer] ^ (words[starts_N[longer] + place] << absent)) * _PRIME
        hash_N[longer] = mixed ^ (mixed >> _SHIFT)
    return hash_N
