"""The side file of a feature extractor: its vocabularies and scales, in safetensors.

Written under another name and then renamed, so that a file is either whole or not there.
"""

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from .checked_files import AGAIN, DamagedFileError, read_tensors

VOCABULARY_NAME = "vocabularies.safetensors"

_DTYPES = frozenset(["F64", "I64", "U8"])


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    replace_file(path, save(contiguous, metadata={"format": "np"}))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays back; they stay in the file until they are looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or holds other types than are written.
    """
    _, tensors = read_tensors(path, dtypes=_DTYPES)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def saved_array(
    arrays: dict[str, NDArray[Any]], part: str, place: str, kind: type[np.generic]
) -> NDArray[Any]:
    """Return one array of a column's saved state.

    Args:
        arrays: the column's.
        part: the array's name.
        place: the column in words, for the error.
        kind: the type that it must have; numbers must be finite.

    Raises:
        ValueError: the array is absent, of another type, or not finite.
    """
    array = arrays.get(part)
    if array is None or array.dtype != kind:
        got = "none" if array is None else str(array.dtype)
        raise damaged_array(place, part, f"must be of type {kind.__name__}, got {got}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise damaged_array(place, part, "must hold finite numbers")
    return array


def damaged_array(place: str, part: str, rule: str) -> DamagedFileError:
    """Return the error for a column's saved array that breaks a rule, to be raised."""
    return DamagedFileError(f"{place}: {part!r} in {VOCABULARY_NAME} {rule}; {AGAIN}")


def fingerprint_of(arrays: dict[str, NDArray[Any]], columns: list[list[dict[str, Any]]]) -> str:
    """Return a short digest of all that was fitted: what arrays and columns hold."""
    digest = blake2b(json.dumps(columns, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it, so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
