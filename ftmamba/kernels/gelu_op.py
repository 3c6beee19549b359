"""GELU and the dropout after it on CPUs, `torch.ops.ftmamba.gelu_dropout`: one pass each way.

The backward pass reads what the forward pass read, so neither a mask nor what came between is kept.
"""

from typing import Any

import torch
from torch import Tensor

from .dropout_op import draw_seed
from .library import GeluCall
from .states import library

NUMBERS_A_THREAD = 2**15
"""Fewer are done sooner than another thread is started."""


@torch.library.custom_op("ftmamba::gelu_dropout", mutates_args=(), device_types="cpu")
def seeded_gelu_dropout(x: Tensor, rate: float, seed: int) -> Tensor:
    """Return gelu(x), some of it set to 0 and the rest divided by 1 - rate, as `seeded_dropout`.

    Raises:
        TypeError: x is neither float32 nor bfloat16.
        ValueError: the rate is not in [0, 1).
    """
    return _run(x, None, rate, seed)


@torch.library.custom_op("ftmamba::gelu_dropout_backward", mutates_args=(), device_types="cpu")
def _gradient(x: Tensor, d_out: Tensor, rate: float, seed: int) -> Tensor:
    return _run(x, d_out, rate, seed)


def _run(x: Tensor, d_out: Tensor | None, rate: float, seed: int) -> Tensor:
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"the cpu GELU takes float32 or bfloat16, got {x.dtype}; cast it first")
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of dropout must be in [0, 1), got {rate}")
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    if d_out is not None:
        d_out = d_out.to(x.dtype).contiguous()
    call = GeluCall(
        count=x.numel(),
        threads=library().threads_for(x.numel(), least=NUMBERS_A_THREAD),
        narrow=x.dtype == torch.bfloat16,
        seed=seed,
        rate=rate,
        x=x.data_ptr(),
        d_out=None if d_out is None else d_out.data_ptr(),
        out=out.data_ptr(),
    )
    library().run("gelu", call)
    return out


@seeded_gelu_dropout.register_fake
def _(x: Tensor, rate: float, seed: int) -> Tensor:  # noqa: ARG001 - as the operator
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gradient.register_fake
def _(x: Tensor, d_out: Tensor, rate: float, seed: int) -> Tensor:  # noqa: ARG001 - likewise
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.rate, ctx.seed = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
    return _gradient(ctx.saved_tensors[0], d_out, ctx.rate, ctx.seed), None, None


seeded_gelu_dropout.register_autograd(_backward, setup_context=_keep_for_backward)


def gelu_dropout(x: Tensor, rate: float) -> Tensor:
    """Return gelu(x) after dropout, by a seed from torch's generator."""
    out: Tensor = seeded_gelu_dropout(x, rate, draw_seed())
    return out
