"""All that a user's past leaves behind: a few small tensors, of one size whatever the past.

As bytes they are a safetensors file. Its header holds, as one JSON text, the version of this
format, the fingerprint of the weights that made the state, and the shapes of one user's state.

Shapes: B users, T events, Z bytes of one user.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

NO_TIME = -1  # of an event that has none
STATE_VERSION = 1
USERS = {"conv": 1, "scan": 1, "last": 0, "n_events": 0, "last_time": 0, "recent": 0}
"""The dimension of each tensor that counts users."""

_KEY = "ftmamba_state"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 2**14
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DIMENSIONS = {"conv": 4, "scan": 4, "last": 2, "n_events": 1, "last_time": 1, "recent": 2}
_NUMBERS = ("conv", "scan", "last")
_AGAIN = "start the user again and observe the events once more"


@dataclass(frozen=True)
class UserState:
    """The state of a batch of users, after their profiles and so many events."""

    conv: Tensor  # newest inputs of each layer's convolution (layers, B, channels, kernel - 1)
    scan: Tensor  # state of each layer's scan (layers, B, channels, numbers of state)
    last: Tensor  # the last layer's output at the newest token (B, hidden), zeros before any
    n_events: Tensor  # int64 (B,)
    last_time: Tensor  # of the newest event, UTC seconds, int64 (B,); `NO_TIME` for none
    # Rows (B, number kept) of the newest items, oldest first, -1 for one of no catalogue.
    recent: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not self.recent.numel():
            object.__setattr__(self, "recent", self.n_events.new_zeros(len(self), 0))

    def __len__(self) -> int:
        return len(self.n_events)

    def to(self, dtype: torch.dtype) -> Self:
        """Return it with its numbers in another type; float16 is off by some 1e-3."""
        return self._each(lambda x, _: x.to(dtype) if x.is_floating_point() else x)

    def select(self, rows: Tensor | Sequence[int] | slice) -> Self:
        """Return the state of some of its users, as rows of a tensor are chosen."""
        chosen = rows if isinstance(rows, Tensor | slice) else torch.tensor(rows).long()
        return self._each(lambda x, dim: x[:, chosen] if dim else x[chosen])

    @classmethod
    def concatenate(cls, states: Sequence[Self]) -> Self:
        """Return one state of the users of several, all of one model."""
        parts = [state.tensors() for state in states]
        layouts = {f"{_layout(part)} {part['scan'].dtype}" for part in parts}
        if len(layouts) != 1:
            raise ValueError(f"states to concatenate must be of one model and type, got {layouts}")
        joined = {name: torch.cat([part[name] for part in parts], USERS[name]) for name in USERS}
        return cls(**joined)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by their names."""
        return {name: getattr(self, name) for name in USERS}

    def to_bytes(self, fingerprint: str, *, dtype: torch.dtype | None = None) -> bytes:
        """Return all its users as bytes that only weights with that `weights_fingerprint` read.

        Its numbers are written in `dtype`, as by `to`; None keeps theirs.
        """
        tensors = in_type(self, dtype).tensors()
        if not self.recent.numel():
            del tensors["recent"]
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        facts = {"version": STATE_VERSION, "fingerprint": fingerprint, "layout": _layout(cpu)}
        return save(cpu, {_KEY: json.dumps(facts, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str) -> "UserState":
        """Read what `to_bytes` wrote; a ValueError says why the bytes are refused."""
        _, facts, _ = read_header(data)
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
        if len(counts) != 1 or _layout(tensors) != facts.get("layout"):
            raise _broken("hold shapes that do not fit each other or their layout")
        return checked(cls(**tensors))

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        changed = {name: change(x, USERS[name]) for name, x in self.tensors().items()}
        return type(self)(**changed)


def log_gaps(times: Tensor, before: Tensor) -> Tensor:
    """Return log(1 + seconds) since the event before, NaN where a time (UTC seconds) is unknown.

    A user's first event has its own time before it, which makes the gap 0.
    """
    return (times - before).clamp(min=0).log1p()


def gaps_of(times_BT: Tensor, state: UserState, lengths_B: Tensor | None) -> Tensor:
    """Return the gap ahead of each event (B, T) of users in a state, in float64.

    Times are int64 UTC seconds, negative for none; no event may be older than the one before it.
    """
    before_BT = torch.cat([state.last_time[:, None], times_BT], 1)[:, :-1]
    older_BT = (times_BT >= 0) & (before_BT >= 0) & (times_BT < before_BT)
    step_T = torch.arange(times_BT.shape[1], device=times_BT.device)
    if lengths_B is not None:
        older_BT &= step_T < lengths_B[:, None]
    if bool(older_BT.any()):
        row, event = older_BT.nonzero()[0].tolist()
        time, ahead = int(times_BT[row, event]), int(before_BT[row, event])
        raise ValueError(
            f"event {event} of user {row} (the first is 0) is of time {time}, before {ahead} of "
            "the one ahead; start it again and observe all events in order, or give no times"
        )
    before_BT = torch.where(state.n_events[:, None] + step_T == 0, times_BT, before_BT)
    times, before = (x.double().masked_fill(x < 0, torch.nan) for x in (times_BT, before_BT))
    return log_gaps(times, before)


def in_type(state: UserState, dtype: torch.dtype | None) -> UserState:
    """Return a state in a type, all of whose numbers that type can hold."""
    for name, extremes in _extremes(state).items():
        if not bool(extremes.isfinite().all()):
            raise ValueError(f"the state's {name} is not finite, so it is not written")
        if dtype is not None and not bool(extremes.to(dtype).isfinite().all()):
            largest = float(extremes.abs().max())
            problem = f"the state's {name} holds {largest:.3g}, which is too large for {dtype}"
            raise ValueError(f"{problem}; write it in float32")
    return state if dtype is None else state.to(dtype)


def checked(state: UserState) -> UserState:
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


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape that one user has in each tensor."""
    return {
        name: [size for dim, size in enumerate(x.shape) if dim != USERS[name]]
        for name, x in tensors.items()
    }


def read_header(data: bytes) -> tuple[int, dict[str, Any], dict[str, tuple[int, int]]]:
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
