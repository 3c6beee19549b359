"""From a text to the row of its embedding.

Ids 0, 1 and 2 are padding, missing and unseen; then come the known texts, the most frequent first;
then, if asked for, the hash buckets that rare and unseen texts share.

Shapes: V distinct texts.
"""

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .configuration_ftmamba import MISSING_ID, N_SPECIAL_IDS, UNSEEN_ID, Column
from .string_table import TextTable, pack_strings
from .vocabulary_file import damaged_array, saved_array

_NOT_KNOWN = -1


class Vocabulary:
    """The known texts of one column.

    Attributes:
        texts: the known texts, in the order of their ids.
        hash_buckets: ids that all other texts share; 0 makes them `UNSEEN_ID`.
    """

    def __init__(self, texts: Sequence[str], hash_buckets: int) -> None:
        self.texts = texts
        self.hash_buckets = hash_buckets

    @cached_property
    def _id_of(self) -> dict[str | None, int]:
        ids: dict[str | None, int] = {None: MISSING_ID, "": MISSING_ID}
        ids.update(zip(self.texts, range(N_SPECIAL_IDS, self.first_bucket), strict=True))
        return ids

    @property
    def first_bucket(self) -> int:
        """The id after the last known text."""
        return N_SPECIAL_IDS + len(self.texts)

    @property
    def size(self) -> int:
        """All ids, those of the buckets included."""
        return self.first_bucket + self.hash_buckets

    def ids(self, texts: list[str | None]) -> NDArray[np.int64]:
        """Return the ids (V,) of texts, of which None is a missing one."""
        if not self.hash_buckets:
            return np.fromiter(map(self._id_of.get, texts, repeat(UNSEEN_ID)), np.int64, len(texts))
        ids_V = np.fromiter(map(self._id_of.get, texts, repeat(_NOT_KNOWN)), np.int64, len(texts))
        others = np.flatnonzero(ids_V == _NOT_KNOWN)
        buckets = [stable_hash(str(texts[index])) % self.hash_buckets for index in others.tolist()]
        ids_V[others] = self.first_bucket + np.asarray(buckets, dtype=np.int64)
        return ids_V

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the state that `vocabulary_from_arrays` reads."""
        packed, offsets = pack_strings(self.texts)
        return {"bytes": packed, "offsets": offsets}


def saved_vocabulary(column: Column, place: str, arrays: dict[str, NDArray[Any]]) -> Vocabulary:
    """Rebuild a saved vocabulary, whose texts stay packed until one is asked for.

    Raises:
        ValueError: the arrays are damaged, or are not those of the column.
    """
    packed = saved_array(arrays, "bytes", place, np.uint8)
    offsets = saved_array(arrays, "offsets", place, np.int64)
    try:
        vocabulary = Vocabulary(TextTable(packed, offsets), column.hash_buckets)
    except ValueError as error:
        raise damaged_array(place, "offsets", f"is damaged ({error})") from None
    if vocabulary.size != column.vocabulary_size:
        raise damaged_array(
            place,
            "offsets",
            f"makes a vocabulary of {vocabulary.size} ids, the column says "
            f"{column.vocabulary_size}",
        )
    return vocabulary


def fit_vocabulary(
    texts: list[str | None], counts: NDArray[np.int64], column: Column
) -> Vocabulary:
    """Choose the known texts: frequent enough, the most frequent first, ties in order of the text.

    Args:
        texts: V texts; one may occur twice; None is missing and never known.
        counts: int64 (V,), how often each occurs in the training rows.
        column: its `min_count`, `max_vocabulary` and `hash_buckets` rule.
    """
    count_of: dict[str, int] = {}
    for text, count in zip(texts, counts.tolist(), strict=True):
        if text and count:
            count_of[text] = count_of.get(text, 0) + count
    known = [text for text, count in count_of.items() if count >= column.min_count]
    known.sort(key=lambda text: (-count_of[text], text))
    if column.max_vocabulary:
        known = known[: column.max_vocabulary]
    return Vocabulary(known, column.hash_buckets)


def stable_hash(text: str) -> int:
    """Return 64 bits of a text, the same in every process and on every machine (BLAKE2b)."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
