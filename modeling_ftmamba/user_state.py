"""All that a user's past leaves behind: a few small tensors, of one size whatever the past.

Shapes: B users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

NO_TIME = -1
"""Stands for the time of an event that has none."""


@dataclass(frozen=True)
class UserState:
    """The state of a batch of users, after their profiles and so many events.

    Attributes:
        conv: newest inputs of each layer's convolution (layers, B, channels, kernel - 1).
        scan: state of each layer's scan (layers, B, channels, numbers of state).
        last: output of the last layer at the newest token (B, hidden), zeros before any.
        n_events: int64 (B,).
        last_time: of the newest event, in UTC epoch seconds, int64 (B,); `NO_TIME` for none.
    """

    conv: Tensor
    scan: Tensor
    last: Tensor
    n_events: Tensor
    last_time: Tensor

    def __len__(self) -> int:
        return len(self.n_events)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def to(self, dtype: torch.dtype) -> Self:
        """Return it with its numbers in another type; float16 halves it, at some 1e-3 of error."""
        return self._each(lambda x, _: x.to(dtype) if x.is_floating_point() else x)

    def select(self, rows: Tensor | Sequence[int] | slice) -> Self:
        """Return the state of some of its users, as rows of a tensor are chosen."""
        chosen = rows if isinstance(rows, Tensor | slice) else torch.tensor(rows).long()
        return self._each(lambda x, dim: x[:, chosen] if dim else x[chosen])

    @classmethod
    def concatenate(cls, states: Sequence[Self]) -> Self:
        """Return one state of the users of several.

        Raises:
            ValueError: there are none, or they are of different models.
        """
        shapes = {(state.conv.shape[::2], state.conv.shape[3:], state.scan.shape[2:],
                   state.scan.dtype) for state in states}  # fmt: skip
        if len(shapes) != 1:
            raise ValueError(
                f"states to concatenate must be of one model and type, got {len(states)} states "
                f"of {len(shapes)} shapes; concatenate those of each model by themselves"
            )
        parts = [state.tensors() for state in states]
        return cls(
            **{
                name: torch.cat([part[name] for part in parts], dim=_dim_of(name))
                for name in parts[0]
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_bytes(self, fingerprint: str, *, dtype: torch.dtype | None = None) -> bytes:
        """Return it as bytes that only a model with these weights reads; see `state_to_bytes`."""
        from .state_bytes import state_to_bytes

        return state_to_bytes(self, fingerprint=fingerprint, dtype=dtype)

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str) -> "UserState":
        """Read what `to_bytes` wrote; see `state_from_bytes`."""
        from .state_bytes import state_from_bytes

        return state_from_bytes(data, fingerprint=fingerprint)

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        changed = {name: change(x, _dim_of(name)) for name, x in self.tensors().items()}
        return type(self)(**changed)


def _dim_of(name: str) -> int:
    """Return the dimension of a field that counts users."""
    return 1 if name in ("conv", "scan") else 0


def gaps_of(times_BT: Tensor, state: UserState, lengths_B: Tensor | None) -> Tensor:
    """Return log(1 + seconds) since the event before (B, T), in float64.

    0 for a user's first event; NaN where this event or the one before has no time.

    Args:
        times_BT: UTC epoch seconds, int64; negative for none.
        state: of the users before these events.
        lengths_B: events of each user, None for T of all.

    Raises:
        ValueError: an event is older than the one before it.
    """
    before_BT = torch.cat([state.last_time[:, None], times_BT], 1)[:, :-1]
    known_BT = (times_BT >= 0) & (before_BT >= 0)
    older_BT = known_BT & (times_BT < before_BT)
    place_T = torch.arange(times_BT.shape[1], device=times_BT.device)
    if lengths_B is not None:
        older_BT &= place_T < lengths_B[:, None]
    if bool(older_BT.any()):
        row, event = older_BT.nonzero()[0].tolist()
        raise ValueError(
            f"event {event} of user {row} (the first is 0) is of time "
            f"{int(times_BT[row, event])}, before {int(before_BT[row, event])}, the one ahead of "
            "it: a state cannot go back; start it again and observe all events in order, or give "
            "it no times"
        )
    gap_BT = (times_BT - before_BT).clamp(min=0).double().log1p()
    first_BT = (state.n_events[:, None] + place_T) == 0
    return gap_BT.masked_fill(~known_BT, torch.nan).masked_fill(first_BT, 0)
