"""Reading files that a stranger made: JSON and safetensors, nothing else, and nothing unchecked.

A file must be a regular one inside its checkpoint. What it claims to hold is compared with its size
before memory is taken, so that no file costs more than a small multiple of its own bytes. Nothing
here, and nothing that is read through here, is ever unpickled.
"""

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

MOST_JSON_BYTES = 2**23
MOST_JSON_VALUES = 500_000
DEEPEST_JSON = 24
MOST_HEADER_BYTES = 2**23
AGAIN = "download or save the checkpoint again"

_DISGUISES = {b"\x80": "a pickle", b"PK\x03\x04": "a zip archive, as torch.save writes"}


class DamagedFileError(ValueError):
    """A file of a checkpoint breaks a rule; says which file, which rule and how to mend it."""


@dataclass(frozen=True)
class TensorFacts:
    """What the header of a safetensors file says of one tensor.

    Attributes:
        dtype: as safetensors spells it, such as `F32`.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]


def damaged(path: Path, problem: str, remedy: str = AGAIN) -> DamagedFileError:
    """Return the error that says what is wrong with a file, to be raised."""
    return DamagedFileError(f"{str(path)!r} {problem}; {remedy}")


def shown(value: object, most: int = 80) -> str:
    """Return a value as an error shows it, however long it is."""
    # Thousands of digits are not turned into text, which Python refuses too.
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def check_file(path: Path, most_bytes: int | None = None) -> None:
    """Check that a path is a regular file inside its checkpoint, and not too large.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is a folder, a device or a pipe, a link that leaves the checkpoint, or
            larger than `most_bytes`.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise damaged(path, "is no regular file", "put the file itself in its place")
    if path.is_symlink() and not _stays_at_home(path):
        raise damaged(path, "is a link that leaves its checkpoint", "copy the file into the folder")
    if most_bytes is not None and facts.st_size > most_bytes:
        raise damaged(path, f"has {facts.st_size} bytes, at most {most_bytes} are read")


def _stays_at_home(link: Path) -> bool:
    """Whether a link stays in its folder; in the Hub's cache, in the repository or the store.

    The store, beside the repositories, holds what several of them have in common.
    """
    snapshot = _snapshot(link)
    homes = [link.parent]
    if snapshot is not None:
        repository = snapshot.parent.parent
        homes = [repository, repository.parent / "blobs"]
    target = link.resolve()
    return any(target.is_relative_to(home.resolve()) for home in homes)


def commit_of(path: Path) -> str | None:
    """Return the commit that a file in the Hub's cache is of, None of any other file."""
    snapshot = _snapshot(path)
    return snapshot.name if snapshot else None


def _snapshot(path: Path) -> Path | None:
    """Return the folder of one commit in the Hub's cache that a file lies in."""
    for folder in path.parents:
        # There are no refs where nothing but commits was ever asked for.
        if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
            return folder
    return None


def plain_name(name: object, ending: str) -> bool:
    """Whether a file may be called so: a name without a path, with that ending."""
    return (
        isinstance(name, str)
        and name.endswith(ending)
        and not name.startswith(".")
        and len(name) <= 200
        and not set(name) & set("/\\:\0")
    )


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is no JSON, or larger or deeper than a checkpoint's, or holds a number
            that is not finite or one key twice.
    """
    check_file(path, most_bytes)
    content = path.read_bytes()
    n_values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > MOST_JSON_VALUES:
        raise damaged(path, f"holds {n_values} values, at most {MOST_JSON_VALUES} are read")
    try:
        values = parse_json(content.decode("utf-8"))
    except RecursionError:
        raise damaged(path, f"is nested more than {DEEPEST_JSON} deep") from None
    except ValueError as error:
        raise damaged(path, f"is not a valid JSON file, or truncated ({error!s:.200})") from None
    return values


def parse_json(text: str) -> dict[str, Any]:
    """Parse an object; see `read_json`, which also says where.

    Raises:
        ValueError: the text is no such JSON.
    """
    values = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
    )
    if not isinstance(values, dict):
        raise ValueError(f"must be an object, got {shown(values)}")
    level: list[Any] = [values]
    for _ in range(DEEPEST_JSON):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError(f"nested more than {DEEPEST_JSON} deep")
    return values


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [one for one in inner if isinstance(one, dict | list)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {shown(key)} occurs twice")
        values[key] = value
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text)} is not finite")
    return number


def tensor_facts(path: Path, *, most_bytes: int | None = None) -> dict[str, TensorFacts]:
    """Return what the header of a safetensors file says, whose claims it has been held to.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is no safetensors file, truncated, or damaged.
    """
    _check_tensor_file(path, most_bytes)
    try:
        with safe_open(path, framework="pt") as file:
            return _facts(file)
    except SafetensorError as error:
        raise _no_tensors(path, error) from None


def read_tensors(
    path: Path, *, dtypes: frozenset[str], most_bytes: int | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Map a safetensors file into memory: its texts, and its tensors, read when looked at.

    The tensors may be written to; the file stays as it is.

    Args:
        path: must not be shortened while the tensors are in use.
        dtypes: the types that its tensors may have, such as `F32`.
        most_bytes: size above which the file is refused.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is no safetensors file, truncated, damaged, or has other types.
    """
    _check_tensor_file(path, most_bytes)
    try:
        with safe_open(path, framework="pt") as file:
            check_dtypes(path, _facts(file), dtypes)
            metadata: dict[str, str] = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _no_tensors(path, error) from None


def check_dtypes(path: Path, facts: Mapping[str, TensorFacts], dtypes: frozenset[str]) -> None:
    """Check the types of a file's tensors."""
    for name, fact in facts.items():
        if fact.dtype not in dtypes:
            raise damaged(
                path,
                f"holds {shown(name)} as {fact.dtype}, it may be {', '.join(sorted(dtypes))}",
            )


def _check_tensor_file(path: Path, most_bytes: int | None) -> None:
    check_file(path, most_bytes)
    with path.open("rb") as file:
        start = file.read(8)
    for mark, what in _DISGUISES.items():
        if start.startswith(mark) and int.from_bytes(start, "little") > MOST_HEADER_BYTES:
            raise damaged(
                path,
                f"is {what}, which can run code when it is read, and no safetensors file",
                "save the weights with save_pretrained(...)",
            )
    if int.from_bytes(start, "little") > MOST_HEADER_BYTES:
        raise _no_tensors(path, f"its header is to have more than {MOST_HEADER_BYTES} bytes")


def _facts(file: Any) -> dict[str, TensorFacts]:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return {
        name: TensorFacts(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()
    }


def _no_tensors(path: Path, error: object) -> DamagedFileError:
    return damaged(path, f"is truncated or no safetensors file ({error!s:.200})")
