"""Users' states as bytes, to be kept by whatever keeps bytes, and refused where they do not belong.

The bytes are a safetensors file. Its header holds, as one JSON text, the version of this format,
the fingerprint of the weights that made the state, and the shapes that one user's state has.

Shapes: B users, Z bytes of one user.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .checked_files import parse_json, shown
from .user_state import UserState

STATE_VERSION = 1

_KEY = "ftmamba_state"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 2**14
_NAMES = tuple(field.name for field in fields(UserState))
_WHOLE = ("n_events", "last_time")
# The dimension that counts users.
_USERS = {name: 1 if name in ("conv", "scan") else 0 for name in _NAMES}
_DIMENSIONS = {"conv": 4, "scan": 4, "last": 2, "n_events": 1, "last_time": 1}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_AGAIN = "start the user again and observe the events once more"


def state_to_bytes(
    state: UserState, *, fingerprint: str, dtype: torch.dtype | None = None
) -> bytes:
    """Write the state of one user, or of a batch of them.

    Args:
        state: of B users.
        fingerprint: of the weights that made it (`weights_fingerprint`).
        dtype: to write its numbers in, such as `torch.float16`, half the bytes at some 1e-3 of
            error; None keeps theirs.

    Raises:
        ValueError: a number is not finite, or not in that type.
    """
    tensors = _tensors(_checked(state, dtype))
    return save(tensors, {_KEY: _facts_of(tensors, fingerprint)})


def states_to_bytes(
    state: UserState, *, fingerprint: str, dtype: torch.dtype | None = None
) -> list[bytes]:
    """Write the state of each of B users by itself, as `state_to_bytes` would.

    The header of all is one, so this takes a small part of the time of B calls.
    """
    if len(state) == 0:
        return []
    state = _checked(state, dtype)
    one = _tensors(state.select([0]))
    example = save(one, {_KEY: _facts_of(one, fingerprint)})
    start = _body_start(example)
    places = _places(_header(example))
    users_first = {name: x.movedim(_USERS[name], 0) for name, x in _tensors(state).items()}
    body_BZ = torch.empty(len(state), len(example) - start, dtype=torch.uint8)
    for name, (first, end) in places.items():
        # Cloned: one user of a column of many has a stride that no view of bytes takes.
        body_BZ[:, first:end] = (
            users_first[name]
            .reshape(len(state), -1)
            .clone(memory_format=torch.contiguous_format)
            .view(torch.uint8)
        )
    head = example[:start]
    return [head + row_Z.tobytes() for row_Z in body_BZ.numpy()]


def state_from_bytes(data: bytes, *, fingerprint: str) -> UserState:
    """Read what `state_to_bytes` has written.

    Args:
        data: all of it.
        fingerprint: of the weights that are to carry the state on.

    Raises:
        ValueError: the bytes are truncated or damaged, of another version, or of other weights.
    """
    facts = _facts(data)
    _check_belongs(facts, fingerprint)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _broken(f"are truncated or damaged ({error!s:.200})") from None
    _check_tensors(tensors, facts)
    _check_finite(tensors)
    return UserState(**tensors)


def states_from_bytes(data: Sequence[bytes], *, fingerprint: str) -> UserState:
    """Read the states of users that are written one by one, as the state of a batch.

    Raises:
        ValueError: there are none, `state_from_bytes` would refuse one, or they do not fit each
            other.
    """
    if not data:
        raise ValueError("there are no states to read; give those of at least one user")
    first = state_from_bytes(data[0], fingerprint=fingerprint)
    start, size = _body_start(data[0]), len(data[0])
    head = data[0][:start]
    alike = all(len(one) == size and one.startswith(head) for one in data)
    if len(first) != 1 or not alike:
        return UserState.concatenate(
            [first, *(state_from_bytes(one, fingerprint=fingerprint) for one in data[1:])]
        )
    joined = bytearray().join(memoryview(one)[start:] for one in data)
    body_BZ = torch.frombuffer(joined, dtype=torch.uint8).view(len(data), size - start)
    tensors = {}
    for name, (begin, end) in _places(_header(data[0])).items():
        model = getattr(first, name)
        shape = list(model.movedim(_USERS[name], 0).shape)
        values = body_BZ[:, begin:end].contiguous().view(model.dtype)
        users_first = values.reshape(len(data), *shape[1:])
        tensors[name] = users_first.movedim(0, _USERS[name]).contiguous()
    _check_counts(tensors)
    _check_finite(tensors)
    return UserState(**tensors)


def _tensors(state: UserState) -> dict[str, Tensor]:
    return {name: getattr(state, name).detach().cpu().contiguous() for name in _NAMES}


def _checked(state: UserState, dtype: torch.dtype | None) -> UserState:
    """Return a state in a type, all of whose numbers it can hold."""
    for name in ("conv", "scan", "last"):
        extremes = _extremes(getattr(state, name))
        if not bool(extremes.isfinite().all()):
            raise ValueError(
                f"the state's {name} is not finite, so it is not written: the model has diverged "
                "or an event held NaN or Inf"
            )
        if dtype is not None and not bool(extremes.to(dtype).isfinite().all()):
            raise ValueError(
                f"the state's {name} holds {float(extremes.abs().max()):.3g}, which is too large "
                f"for {dtype}; write it in float32"
            )
    return state if dtype is None else state.to(dtype)


def _extremes(values: Tensor) -> Tensor:
    """Return the least and the greatest number, NaN where there is one; faster than all of them."""
    return torch.stack(values.aminmax()) if values.numel() else values.new_zeros(2)


def _facts_of(tensors: Mapping[str, Tensor], fingerprint: str) -> str:
    facts = {
        "version": STATE_VERSION,
        "fingerprint": fingerprint,
        "layout": _layout(tensors),
    }
    return json.dumps(facts, sort_keys=True)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape that one user has in each tensor."""
    return {
        name: [size for dim, size in enumerate(x.shape) if dim != _USERS[name]]
        for name, x in tensors.items()
    }


def _body_start(data: bytes) -> int:
    return _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")


def _header(data: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file.

    Raises:
        ValueError: there is none.
    """
    start = _body_start(data)
    if len(data) < start or not _LENGTH_BYTES < start <= _MOST_HEADER_BYTES:
        raise _broken(f"are truncated or no state of a user, of {len(data)} bytes")
    try:
        return parse_json(data[_LENGTH_BYTES:start].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(f"are damaged or no state of a user ({error!s:.200})") from None


def _places(header: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return where each tensor begins and ends behind a header that has been checked."""
    return {name: tuple(header[name]["data_offsets"]) for name in _NAMES}


def _facts(data: bytes) -> dict[str, Any]:
    metadata = _header(data).get("__metadata__")
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    try:
        return parse_json(text if isinstance(text, str) else "")
    except (ValueError, RecursionError):
        raise _broken("are no state of a user, or damaged") from None


def _check_belongs(facts: Mapping[str, Any], fingerprint: str) -> None:
    version, made_by = facts.get("version"), facts.get("fingerprint")
    if version != STATE_VERSION or isinstance(version, bool):
        raise _broken(
            f"have format {shown(version)}, this code reads {STATE_VERSION}",
            f"read them with the release that wrote them, or {_AGAIN}",
        )
    if made_by != fingerprint:
        raise _broken(
            f"were made by other weights ({shown(made_by, 20)}) than the model's "
            f"({fingerprint:.16}...)",
            f"load the checkpoint that wrote them, or {_AGAIN}",
        )


def _check_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    if sorted(tensors) != sorted(_NAMES):
        raise _broken(f"hold {shown(sorted(tensors))}, they must hold {', '.join(_NAMES)}")
    for name, x in tensors.items():
        allowed = (torch.int64,) if name in _WHOLE else _FLOATS
        if x.dtype not in allowed or x.ndim != _DIMENSIONS[name]:
            raise _broken(f"hold {name} as {x.dtype} of {tuple(x.shape)}, which no state has")
    counts = {x.shape[_USERS[name]] for name, x in tensors.items()}
    layout = _layout(tensors)
    if len(counts) != 1 or layout != facts.get("layout"):
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        raise _broken(f"hold shapes that do not fit each other or their layout: {shown(shapes)}")
    _check_counts(tensors)


def _check_counts(tensors: Mapping[str, Tensor]) -> None:
    if bool((tensors["n_events"] < 0).any()):
        raise _broken("hold a negative number of events")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, x in tensors.items():
        if name not in _WHOLE and not bool(_extremes(x).isfinite().all()):
            raise _broken(f"hold NaN or Inf in {name}")


def _broken(problem: str, remedy: str = _AGAIN) -> ValueError:
    return ValueError(f"the bytes of a user's state {problem}; {remedy}")
