"""Vectors of length 1 on CPUs, `torch.ops.ftmamba.normalize`: one pass over memory each way.

`F.normalize` takes three, and its gradient eight.
"""

from typing import Any

import torch
from torch import Tensor

from .library import NormalizeCall
from .states import library

NUMBERS_A_THREAD = 2**16
"""Fewer are done sooner than another thread is started."""


@torch.library.custom_op("ftmamba::normalize", mutates_args=(), device_types="cpu")
def normalize_op(x: Tensor, eps: float) -> Tensor:
    """Return x (..., D) over its length, or over eps where that is longer.

    Raises:
        TypeError: x is not float32.
    """
    return _run(x, None, eps)


@torch.library.custom_op("ftmamba::normalize_backward", mutates_args=(), device_types="cpu")
def _gradient(x: Tensor, d_out: Tensor, eps: float) -> Tensor:
    return _run(x, d_out, eps)


def _run(x: Tensor, d_out: Tensor | None, eps: float) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError(f"the cpu normalize takes float32, got {x.dtype}; cast it with .float()")
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    if d_out is not None:
        d_out = d_out.contiguous()
    call = NormalizeCall(
        rows=x.numel() // x.shape[-1],
        size=x.shape[-1],
        threads=library().threads_for(x.numel(), least=NUMBERS_A_THREAD),
        eps=eps,
        x=x.data_ptr(),
        d_out=None if d_out is None else d_out.data_ptr(),
        out=out.data_ptr(),
    )
    library().run("normalize", call)
    return out


@normalize_op.register_fake
def _(x: Tensor, eps: float) -> Tensor:  # noqa: ARG001 - as the operator
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gradient.register_fake
def _(x: Tensor, d_out: Tensor, eps: float) -> Tensor:  # noqa: ARG001 - likewise
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
    return _gradient(ctx.saved_tensors[0], d_out, ctx.eps), None


normalize_op.register_autograd(_backward, setup_context=_keep_for_backward)


def normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Return float32 `x` as `F.normalize(x, dim=-1)` does."""
    out: Tensor = normalize_op(x, eps)
    return out
