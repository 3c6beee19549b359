"""What the compiled kernels accept, checked before any pointer leaves Python."""

from collections.abc import Mapping

import torch
from torch import Tensor

NARROW = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_KERNEL = 32


def float32(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor in float32.

    Raises:
        RuntimeError: it is not on the CPU.
        TypeError: it is not float32 or narrower.
    """
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_cpu):
        return tensor
    if tensor.device.type != "cpu":
        raise RuntimeError(
            f"the compiled scan takes tensors on the CPU, got one on {tensor.device}; choose "
            "set_scan('auto'), which takes Triton there"
        )
    if tensor.dtype not in NARROW:
        raise TypeError(
            "the compiled scan takes float32, bfloat16 or float16, got "
            f"{str(tensor.dtype).removeprefix('torch.')}; choose set_scan('sequential'), which is "
            "exact in float64"
        )
    return tensor.to(torch.float32)


def check_layer(tensors: Mapping[str, Tensor | None], *, last: bool) -> dict[str, int]:
    """Check the shapes of a fused layer against each other and return its sizes.

    Raises:
        ValueError: one does not fit, or there is no last token.
    """
    batch, length, hidden = _sizes(tensors, "x", 3)
    inner, state = _sizes(tensors, "A_log", 2)
    _, rank = _sizes(tensors, "dt_weight", 2)
    _, _, kernel = _sizes(tensors, "conv_weight", 3)
    shapes = {
        "in_proj": (2 * inner, hidden), "conv_weight": (inner, 1, kernel), "conv_bias": (inner,),
        "x_proj": (rank + 2 * state, inner), "dt_weight": (inner, rank), "dt_bias": (inner,),
        "D": (inner,), "out_proj": (hidden, inner), "norm_weight": (hidden,),
        "norm_bias": (hidden,),
    }  # fmt: skip
    _check_shapes(tensors, shapes)
    if not 1 <= kernel <= WIDEST_KERNEL:
        raise ValueError(
            f"the compiled layer takes a convolution of 1 to {WIDEST_KERNEL} tokens, got {kernel}; "
            "choose set_scan('sequential')"
        )
    _check_tokens(length, last=last)
    return {
        "rows": batch, "length": length, "hidden": hidden, "inner": inner, "state": state,
        "rank": rank, "kernel": kernel,
    }  # fmt: skip


def check_scan(tensors: Mapping[str, Tensor], *, last: bool) -> None:
    """Check the shapes of a scan: u (B, L, E), A (E, N), C (B, N) where only the last is wanted.

    Raises:
        ValueError: one does not fit, or there is no last token.
    """
    batch, length, inner = _sizes(tensors, "u", 3)
    _, state = _sizes(tensors, "A", 2)
    shapes = {
        "dt": (batch, length, inner), "A": (inner, state), "B": (batch, length, state),
        "C": (batch, state) if last else (batch, length, state),
    }  # fmt: skip
    _check_shapes(tensors, shapes)
    _check_tokens(length, last=last)


def _sizes(tensors: Mapping[str, Tensor | None], name: str, n_dimensions: int) -> tuple[int, ...]:
    tensor = tensors[name]
    shape = tuple(tensor.shape) if tensor is not None else ()
    if len(shape) != n_dimensions:
        raise ValueError(f"{name} must have {n_dimensions} dimensions, got the shape {shape}")
    return shape


def _check_shapes(tensors: Mapping[str, Tensor | None], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")


def _check_tokens(length: int, *, last: bool) -> None:
    if last and not length:
        raise ValueError("the last token's output needs at least one token, got rows of none")
