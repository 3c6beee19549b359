"""All that a user's past leaves behind: a few small tensors, of one size whatever the past.

Shapes: B users, T events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

NO_TIME = -1  # of an event that has none
USERS = {"conv": 1, "scan": 1, "last": 0, "n_events": 0, "last_time": 0, "recent": 0}
"""The dimension of each tensor that counts users."""


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
        layouts = {f"{layout_of(part)} {part['scan'].dtype}" for part in parts}
        if len(layouts) != 1:
            raise ValueError(f"states to concatenate must be of one model and type, got {layouts}")
        joined = {name: torch.cat([part[name] for part in parts], USERS[name]) for name in USERS}
        return cls(**joined)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by their names."""
        return {name: getattr(self, name) for name in USERS}

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


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape that one user has in each tensor."""
    return {
        name: [size for dim, size in enumerate(x.shape) if dim != USERS[name]]
        for name, x in tensors.items()
    }
