"""Dropout on CPUs, `torch.ops.ftmamba.dropout`: no mask is drawn, written or kept.

Whether a number stays is a hash of a seed and of its place, computed where it is needed. torch
draws a random number for each, which takes many times longer than the multiplication.
"""

from typing import Any

import torch
from torch import Tensor

from .library import DropoutCall
from .states import library

NUMBERS_A_THREAD = 2**17
"""Fewer are done sooner than another thread is started."""


@torch.library.custom_op("ftmamba::dropout", mutates_args=(), device_types="cpu")
def seeded_dropout(x: Tensor, rate: float, seed: int) -> Tensor:
    """Return x with some numbers set to 0 and the others divided by 1 - rate.

    Raises:
        TypeError: x is not float32.
        ValueError: the rate is not in [0, 1).
    """
    if x.dtype != torch.float32:
        raise TypeError(f"the cpu dropout takes float32, got {x.dtype}; cast it with .float()")
    return _run(x, None, torch.float32, rate, seed)


@torch.library.custom_op("ftmamba::dropout_sum", mutates_args=(), device_types="cpu")
def seeded_dropout_sum(hidden: Tensor, x: Tensor, rate: float, seed: int) -> Tensor:
    """Return hidden, plus x with some numbers set to 0 as `seeded_dropout` does.

    Raises:
        TypeError: hidden is not float32, or x neither that nor bfloat16.
        ValueError: the rate is not in [0, 1), or the shapes differ.
    """
    if hidden.dtype != torch.float32 or x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(
            "the cpu sum with dropout takes float32, and bfloat16 for what is dropped, got "
            f"{hidden.dtype} and {x.dtype}; cast them first"
        )
    if hidden.shape != x.shape:
        raise ValueError(f"shapes of a sum differ: {tuple(hidden.shape)} and {tuple(x.shape)}")
    return _run(x, hidden, torch.float32, rate, seed)


@torch.library.custom_op("ftmamba::dropout_sum_backward", mutates_args=(), device_types="cpu")
def _gradient_of_dropped(d_out: Tensor, narrow: bool, rate: float, seed: int) -> Tensor:
    return _run(d_out, None, torch.bfloat16 if narrow else torch.float32, rate, seed)


def _run(x: Tensor, added: Tensor | None, dtype: torch.dtype, rate: float, seed: int) -> Tensor:
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of dropout must be in [0, 1), got {rate}")
    x = x.contiguous()
    added = None if added is None else added.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        call = DropoutCall(
            count=x.numel(),
            threads=library().threads_for(x.numel(), least=NUMBERS_A_THREAD),
            narrow_x=x.dtype == torch.bfloat16,
            narrow_out=dtype == torch.bfloat16,
            seed=seed,
            rate=rate,
            x=x.data_ptr(),
            added=None if added is None else added.data_ptr(),
            out=out.data_ptr(),
        )
        library().run("dropout", call)
    return out


@seeded_dropout.register_fake
def _(x: Tensor, rate: float, seed: int) -> Tensor:  # noqa: ARG001 - as the operator
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, ctx.rate, ctx.seed = inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return seeded_dropout(gradient, ctx.rate, ctx.seed), None, None


seeded_dropout.register_autograd(_backward, setup_context=_keep_for_backward)


@seeded_dropout_sum.register_fake
def _(hidden: Tensor, x: Tensor, rate: float, seed: int) -> Tensor:  # noqa: ARG001 - likewise
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@_gradient_of_dropped.register_fake
def _(d_out: Tensor, narrow: bool, rate: float, seed: int) -> Tensor:  # noqa: ARG001 - likewise
    dtype = torch.bfloat16 if narrow else torch.float32
    return torch.empty_like(d_out, dtype=dtype, memory_format=torch.contiguous_format)


def _keep_for_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, x, ctx.rate, ctx.seed = inputs
    ctx.narrow = x.dtype == torch.bfloat16


def _backward_of_sum(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return d_out, _gradient_of_dropped(d_out, ctx.narrow, ctx.rate, ctx.seed), None, None


seeded_dropout_sum.register_autograd(_backward_of_sum, setup_context=_keep_for_sum)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return float32 `x` after dropout, by a seed from torch's generator."""
    out: Tensor = seeded_dropout(x, rate, draw_seed())
    return out


def dropout_sum(hidden: Tensor, x: Tensor, rate: float) -> Tensor:
    """Return float32 `hidden` plus `x` after dropout, by a seed from torch's generator."""
    out: Tensor = seeded_dropout_sum(hidden, x, rate, draw_seed())
    return out


def draw_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))
