"""Dropout, GELU with dropout, and vectors of length 1 on CPUs: one pass over memory each way.

No mask is drawn, written or kept: whether dropout keeps a number is a hash of a seed and of its
index, computed where it is needed. torch draws a random number for each, which takes many times
longer than the multiplication. Each operator computes its own gradient: with `d_out` it returns
that of x.
"""

from typing import Any

import torch
from torch import Tensor

from .library import DropoutCall, GeluCall, NormalizeCall, library

# Numbers of a thread: fewer are done sooner than another thread is started.
DROPOUT_NUMBERS, GELU_NUMBERS, NORMALIZE_NUMBERS = 2**17, 2**15, 2**16


@torch.library.custom_op("ftmamba::dropout", mutates_args=(), device_types="cpu")
def dropout_op(x: Tensor, added: Tensor | None, narrow: bool, rate: float, seed: int) -> Tensor:
    """Return [added +] x, numbers of x set to 0 or divided by 1 - rate; float32, or bfloat16.

    Raises:
        TypeError: x is neither float32 nor, with `added`, bfloat16; or that is not float32.
        ValueError: the rate is not in [0, 1), or the shapes differ.
    """
    takes = (torch.float32,) if added is None else (torch.float32, torch.bfloat16)
    if x.dtype not in takes or (added is not None and added.dtype != torch.float32):
        raise TypeError(
            "the cpu dropout takes float32, and bfloat16 where it is added to float32, got "
            f"{x.dtype}{'' if added is None else f' and {added.dtype}'}; cast it with .float()"
        )
    if added is not None and added.shape != x.shape:
        raise ValueError(f"shapes of a sum differ: {tuple(added.shape)} and {tuple(x.shape)}")
    _check_rate(rate)
    x, added = x.contiguous(), None if added is None else added.contiguous()
    out = torch.empty_like(x, dtype=torch.bfloat16 if narrow else torch.float32)
    if x.numel():
        call = DropoutCall(
            count=x.numel(), threads=library().threads_for(x.numel(), least=DROPOUT_NUMBERS),
            narrow_x=x.dtype == torch.bfloat16, narrow_out=narrow, seed=seed, rate=rate,
            x=x.data_ptr(), added=None if added is None else added.data_ptr(), out=out.data_ptr(),
        )  # fmt: skip
        library().run("dropout", call)
    return out


@torch.library.custom_op("ftmamba::gelu_dropout", mutates_args=(), device_types="cpu")
def gelu_dropout_op(x: Tensor, d_out: Tensor | None, rate: float, seed: int) -> Tensor:
    """Return gelu(x) after dropout.

    Raises:
        TypeError: x is neither float32 nor bfloat16.
        ValueError: the rate is not in [0, 1).
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"the cpu GELU takes float32 or bfloat16, got {x.dtype}; cast it first")
    _check_rate(rate)
    x = x.contiguous()
    out = torch.empty_like(x)
    d_out = None if d_out is None else d_out.to(x.dtype).contiguous()
    if x.numel():
        call = GeluCall(
            count=x.numel(), threads=library().threads_for(x.numel(), least=GELU_NUMBERS),
            narrow=x.dtype == torch.bfloat16, seed=seed, rate=rate, x=x.data_ptr(),
            d_out=None if d_out is None else d_out.data_ptr(), out=out.data_ptr(),
        )  # fmt: skip
        library().run("gelu", call)
    return out


@torch.library.custom_op("ftmamba::normalize", mutates_args=(), device_types="cpu")
def normalize_op(x: Tensor, d_out: Tensor | None, eps: float) -> Tensor:
    """Return x (..., D) over its length, or over eps where that is longer.

    Raises:
        TypeError: x is not float32.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"the cpu normalize takes float32, got {x.dtype}; cast it with .float()")
    x = x.contiguous()
    out = torch.empty_like(x)
    d_out = None if d_out is None else d_out.contiguous()
    if x.numel():
        call = NormalizeCall(
            rows=x.numel() // x.shape[-1], size=x.shape[-1], eps=eps,
            threads=library().threads_for(x.numel(), least=NORMALIZE_NUMBERS), x=x.data_ptr(),
            d_out=None if d_out is None else d_out.data_ptr(), out=out.data_ptr(),
        )  # fmt: skip
        library().run("normalize", call)
    return out


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of dropout must be in [0, 1), got {rate}")


@dropout_op.register_fake
def _(x: Tensor, _added: Tensor | None, narrow: bool, _rate: float, _seed: int) -> Tensor:
    dtype = torch.bfloat16 if narrow else torch.float32
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@gelu_dropout_op.register_fake
@normalize_op.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_dropout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, added, _, *ctx.options = inputs
    ctx.narrow, ctx.adds = x.dtype == torch.bfloat16, added is not None


def _dropout_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    d_x = dropout_op(d_out, None, ctx.narrow, *ctx.options)
    return d_x, d_out if ctx.adds else None, None, None, None


def _keep_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, d_out, *ctx.options = inputs
    if d_out is not None:
        raise RuntimeError("the cpu kernels have no gradient of a gradient; set_scan('sequential')")
    ctx.save_for_backward(x)


def _gelu_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return gelu_dropout_op(ctx.saved_tensors[0], d_out, *ctx.options), None, None, None


def _normalize_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return normalize_op(ctx.saved_tensors[0], d_out, *ctx.options), None, None


dropout_op.register_autograd(_dropout_backward, setup_context=_keep_dropout)
gelu_dropout_op.register_autograd(_gelu_backward, setup_context=_keep_x)
normalize_op.register_autograd(_normalize_backward, setup_context=_keep_x)


def draw_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))


def dropout(x: Tensor, rate: float, added: Tensor | None = None) -> Tensor:
    """Return float32 [added +] x after dropout, by a seed from torch's generator."""
    out: Tensor = dropout_op(x, added, False, rate, draw_seed())
    return out


def gelu_dropout(x: Tensor, rate: float) -> Tensor:
    """Return gelu(x) after dropout, by a seed from torch's generator."""
    out: Tensor = gelu_dropout_op(x, None, rate, draw_seed())
    return out


def normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Return float32 `x` as `F.normalize(x, dim=-1)` does."""
    out: Tensor = normalize_op(x, None, eps)
    return out
