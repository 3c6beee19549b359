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
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of dropout must be in [0, 1), got {rate}")
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        threads = library().threads_for(x.numel(), least=NUMBERS_A_THREAD)
        call = DropoutCall(
            count=x.numel(), threads=threads, seed=seed, rate=rate, x=x.data_ptr(),
            out=out.data_ptr(),
        )  # fmt: skip
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


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return float32 `x` after dropout, by a seed from torch's generator."""
    out: Tensor = seeded_dropout(x, rate, draw_seed())
    return out


def draw_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))
