"""Lists of texts as two arrays, so that they travel in safetensors and nothing is pickled.

Shapes: N texts, Z bytes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

_PIECE = 4096


class TextTable(Sequence[str]):
    """Texts that stay packed until they are looked at.

    Equal to any sequence of the same texts.

    Args:
        packed: the texts' UTF-8 bytes end to end (Z,).
        offsets: where each begins and ends (N + 1,).

    Raises:
        ValueError: the two arrays do not fit each other, or the bytes are no UTF-8.
    """

    def __init__(self, packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        _check(packed, offsets)
        self.packed = packed
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(self[row] for row in range(*index.indices(len(self))))
        row = range(len(self))[index]
        return self._text(int(self.offsets[row]), int(self.offsets[row + 1]))

    def take(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts of some rows, several times faster than one by one."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        blob = self.packed.data
        return [
            str(blob[start:end], "utf-8", "surrogatepass")
            for start, end in zip(starts, ends, strict=True)
        ]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PIECE):
            yield from self._piece(start, min(start + _PIECE, len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextTable):
            return np.array_equal(self.offsets, other.offsets) and np.array_equal(
                self.packed, other.packed
            )
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3]))
        return f"TextTable([{first}{', ...' if len(self) > 3 else ''}], {len(self)} texts)"

    def _text(self, start: int, end: int) -> str:
        return self.packed[start:end].tobytes().decode("utf-8", "surrogatepass")

    def _piece(self, first: int, last: int) -> list[str]:
        bounds = self.offsets[first : last + 1]
        blob = self.packed[bounds[0] : bounds[-1]].tobytes()
        pairs = pairwise((bounds - bounds[0]).tolist())
        if blob.isascii():
            text = blob.decode("ascii")
            return [text[start:end] for start, end in pairs]
        return [blob[start:end].decode("utf-8", "surrogatepass") for start, end in pairs]


def pack_strings(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the texts' UTF-8 bytes end to end (Z,) and where each begins and ends (N + 1,)."""
    if isinstance(texts, TextTable):
        return texts.packed, texts.offsets
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def text_table(texts: Sequence[str]) -> TextTable:
    """Return texts as a table; a table is returned as it is."""
    return texts if isinstance(texts, TextTable) else TextTable(*pack_strings(texts))


def unpack_strings(packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[str]:
    """Return the texts that `pack_strings` packed.

    Raises:
        ValueError: the two arrays do not fit each other, or the bytes are no UTF-8.
    """
    return list(TextTable(packed, offsets))


def _check(packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    fits = (
        packed.dtype == np.uint8
        and offsets.dtype == np.int64
        and packed.ndim == offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(packed)
        and bool((offsets[1:] >= offsets[:-1]).all())
    )
    if not fits:
        raise ValueError(
            "a table of texts is damaged: its offsets must rise from 0 to its number of bytes, "
            f"{packed.size}; download or save the file again"
        )
    if not _is_utf8(packed, offsets):
        raise ValueError(
            "a table of texts is damaged: its bytes must be UTF-8, whole in each text; "
            "download or save the file again"
        )


def _is_utf8(packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> bool:
    """Whether every text is UTF-8 by itself: all of them together are, and none starts inside."""
    blob = packed.data if packed.flags.c_contiguous else packed.tobytes()
    try:
        str(blob, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    starts = offsets[:-1][offsets[:-1] < len(packed)]
    return not bool(((packed[starts] & 0xC0) == 0x80).any())
