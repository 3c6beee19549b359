"""What every compiled selective scan asks of its inputs."""

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_inputs(inputs: tuple[Tensor, ...], *, last: bool, scan: str) -> None:
    """Raise ValueError or TypeError where u, dt, A, B and C do not belong together.

    Args:
        inputs: u, dt (batch, tokens, channels), A (channels, states), B and C (batch, tokens,
            states).
        last: whether C is that of the last token alone, (batch, states).
        scan: the implementation's name, for the message.
    """
    u, _, A, _, _ = inputs
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(
            f"the {scan} scan takes u (batch, tokens, channels) and A (channels, states), "
            f"got u {tuple(u.shape)} and A {tuple(A.shape)}"
        )
    rows, tokens, channels = u.shape
    of_states, of_channels = (rows, tokens, A.shape[1]), (rows, tokens, channels)
    of_C = (rows, A.shape[1]) if last else of_states
    shapes = (of_channels, of_channels, (channels, A.shape[1]), of_states, of_C)
    for name, tensor, shape in zip(("u", "dt", "A", "B", "C"), inputs, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(
                f"the {scan} scan got {name} {tuple(tensor.shape)}; for u {tuple(u.shape)} and A "
                f"{tuple(A.shape)} it must be {tuple(shape)}"
            )
        if tensor.device != u.device:
            raise ValueError(
                f"the {scan} scan got {name} on {tensor.device} and u on {u.device}; "
                "move the model and its inputs to one device"
            )
        check_type(name, tensor, scan=scan)


def check_type(name: str, tensor: Tensor, *, scan: str) -> None:
    """Raise TypeError where a compiled scan does not take the tensor's type."""
    if tensor.dtype not in TYPES:
        raise TypeError(
            f"the {scan} scan takes float32, bfloat16 and float16, got {name} of {tensor.dtype}; "
            "convert it, or model.set_scan('sequential')"
        )
