"""Lists of texts as two arrays, so that they travel in safetensors and nothing is pickled.

Shapes: N texts, Z bytes.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def pack_strings(texts: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the texts' UTF-8 bytes end to end (Z,) and where each begins and ends (N + 1,)."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def unpack_strings(packed: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[str]:
    """Return the texts that `pack_strings` packed.

    Raises:
        ValueError: the two arrays do not fit each other, or the bytes are no UTF-8.
    """
    fits = (
        packed.ndim == offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(packed)
        and bool((np.diff(offsets) >= 0).all())
    )
    if not fits:
        raise ValueError(
            "a table of texts is damaged: its offsets must rise from 0 to its number of bytes, "
            f"{len(packed)}; download or save the file again"
        )
    blob = packed.tobytes()
    bounds = offsets.tolist()
    if blob.isascii():
        text = blob.decode("ascii")
        return [text[start:end] for start, end in pairwise(bounds)]
    return [blob[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(bounds)]
