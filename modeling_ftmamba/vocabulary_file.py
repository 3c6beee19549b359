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
from safetensors import SafetensorError
from safetensors.numpy import load, save

VOCABULARY_NAME = "vocabularies.safetensors"


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    replace_file(path, save(contiguous, metadata={"format": "np"}))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays back.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    try:
        arrays: dict[str, NDArray[Any]] = load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"'{path}' is truncated or damaged ({error}); download or save the checkpoint again"
        ) from None
    return arrays


def fingerprint_of(arrays: dict[str, NDArray[Any]], columns: list[list[dict[str, Any]]]) -> str:
    """Return a short digest of all that was fitted: what arrays and columns hold."""
    digest = blake2b(json.dumps(columns, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(array.tobytes())
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
