"""Users' states as bytes, which are a safetensors file.

Its header holds, as one JSON text, the version of this format, the fingerprint of the weights that
made the state, and the shapes of one user's state.

Shapes: B users, Z bytes of one user.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modeling_ftmamba.user_state import USERS, UserState, layout_of

STATE_VERSION = 1

_KEY = "ftmamba_state"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 2**14
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DIMENSIONS = {"conv": 4, "scan": 4, "last": 2, "n_events": 1, "last_time": 1, "recent": 2}
_NUMBERS = ("conv", "scan", "last")
_AGAIN = "start the user again and observe the events once more"


def to_bytes(state: UserState, fingerprint: str, *, dtype: torch.dtype | None = None) -> bytes:
    """Return all users of a state as bytes that only weights with that `weights_fingerprint` read.

    Its numbers are written in `dtype`, as by `to`; None keeps theirs.
    """
    tensors = _in_type(state, dtype).tensors()
    if not state.recent.numel():
        del tensors["recent"]
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"version": STATE_VERSION, "fingerprint": fingerprint, "layout": layout_of(cpu)}
    return save(cpu, {_KEY: json.dumps(facts, sort_keys=True)})


def from_bytes(data: bytes, fingerprint: str) -> UserState:
    """Read what `to_bytes` wrote; a ValueError says why the bytes are refused."""
    _, facts, _ = _read_header(data)
    version, own = facts.get("version"), facts.get("fingerprint")
    if version != STATE_VERSION:
        problem = f"have format {version!r:.20}, this code reads {STATE_VERSION}"
        raise _broken(problem, f"read them with the release that wrote them, or {_AGAIN}")
    if own != fingerprint:
        problem = f"were made by other weights ({own!r:.20}) than the model's"
        raise _broken(problem, f"load the checkpoint that wrote them, or {_AGAIN}")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _broken(f"are truncated or damaged ({error!s:.200})") from None
    for name, x in tensors.items():
        allowed = _FLOATS if name in _NUMBERS else (torch.int64,)
        if x.dtype not in allowed or x.ndim != _DIMENSIONS.get(name):
            raise _broken(f"hold {name:.20} as {x.dtype} of {tuple(x.shape)}, as no state has")
    counts = {x.shape[USERS[name]] for name, x in tensors.items()}
    if len(counts) != 1 or layout_of(tensors) != facts.get("layout"):
        raise _broken("hold shapes that do not fit each other or their layout")
    return _checked(UserState(**tensors))


def states_to_bytes(
    state: UserState, *, fingerprint: str, dtype: torch.dtype | None = None
) -> list[bytes]:
    """Write each of B users by itself; one header for all makes it faster than B `to_bytes`."""
    if len(state) == 0:
        return []
    if len(state) == 1:
        return [to_bytes(state, fingerprint, dtype=dtype)]
    state = _in_type(state, dtype)
    example = to_bytes(state.select([0]), fingerprint)
    start, _, offsets = _read_header(example)
    body_BZ = torch.empty(len(state), len(example) - start, dtype=torch.uint8)
    for name, (first, end) in offsets.items():
        users_first = state.tensors()[name].detach().cpu().movedim(USERS[name], 0)
        # Cloned: a single user of a larger tensor has a stride that `contiguous` leaves as it is.
        users_first = users_first.clone(memory_format=torch.contiguous_format)
        body_BZ[:, first:end] = users_first.view(len(state), -1).view(torch.uint8)
    head = example[:start]
    return [head + row_Z.tobytes() for row_Z in body_BZ.numpy()]


def states_from_bytes(data: Sequence[bytes], *, fingerprint: str) -> UserState:
    """Read users that were written one by one as one batch; see `from_bytes`."""
    if not data:
        raise ValueError("there are no states to read; give those of at least one user")
    first = from_bytes(data[0], fingerprint)
    if len(data) == 1:
        return first
    (start, _, offsets), size = _read_header(data[0]), len(data[0])
    head = data[0][:start]
    if len(first) != 1 or not all(len(one) == size and one.startswith(head) for one in data):
        others = [from_bytes(one, fingerprint) for one in data[1:]]
        return UserState.concatenate([first, *others])
    joined = bytearray().join(memoryview(one)[start:] for one in data)
    body_BZ = torch.frombuffer(joined, dtype=torch.uint8).view(len(data), size - start)
    tensors = {}
    for name, (begin, end) in offsets.items():
        of_one = getattr(first, name).movedim(USERS[name], 0)
        values = body_BZ[:, begin:end].contiguous().view(of_one.dtype)
        users_first = values.reshape(len(data), *of_one.shape[1:])
        tensors[name] = users_first.movedim(0, USERS[name]).contiguous()
    return _checked(UserState(**tensors))


def _in_type(state: UserState, dtype: torch.dtype | None) -> UserState:
    """Return a state in a type, all of whose numbers that type can hold."""
    for name, extremes in _extremes(state).items():
        if not bool(extremes.isfinite().all()):
            raise ValueError(f"the state's {name} is not finite, so it is not written")
        if dtype is not None and not bool(extremes.to(dtype).isfinite().all()):
            largest = float(extremes.abs().max())
            problem = f"the state's {name} holds {largest:.3g}, which is too large for {dtype}"
            raise ValueError(f"{problem}; write it in float32")
    return state if dtype is None else state.to(dtype)


def _checked(state: UserState) -> UserState:
    """Return a state that was read, if its numbers can be."""
    if bool((state.n_events < 0).any()):
        raise _broken("hold a negative number of events")
    for name, extremes in _extremes(state).items():
        if not bool(extremes.isfinite().all()):
            raise _broken(f"hold NaN or Inf in {name}")
    return state


def _extremes(state: UserState) -> dict[str, Tensor]:
    """Return the least and the greatest number of each tensor, NaN where it holds one."""
    tensors = {name: getattr(state, name) for name in _NUMBERS}
    return {
        name: torch.stack(x.aminmax()) if x.numel() else x.new_zeros(2)
        for name, x in tensors.items()
    }


def _read_header(data: bytes) -> tuple[int, dict[str, Any], dict[str, tuple[int, int]]]:
    """Return where the numbers begin, the facts, and where each tensor lies behind there."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < start or not _LENGTH_BYTES < start <= _MOST_HEADER_BYTES:
        raise _broken(f"are truncated or no state of a user, of {len(data)} bytes")
    try:
        header = json.loads(data[_LENGTH_BYTES:start])
        facts = dict(json.loads(header["__metadata__"][_KEY]))
        names = [name for name in USERS if name in header or name != "recent"]
        return start, facts, {name: tuple(header[name]["data_offsets"]) for name in names}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _broken(f"are damaged or no state of a user ({error!s:.200})") from None


def _broken(problem: str, remedy: str = _AGAIN) -> ValueError:
    return ValueError(f"the bytes of a user's state {problem}; {remedy}")
