"""The selective scan on a GPU, by Triton kernels.

Each is one custom operator with its gradient, so that compiled graphs hold it whole. Operators are
registered under the name of this copy of the code: one from the Hub and an installed one live in
one process.

Shapes: B batch, L tokens, E channels, N numbers of state.
"""

import re
from typing import Any

import torch
from torch import Tensor

from .scan_inputs import check_inputs
from .scan_triton_device import why_not
from .scan_triton_launch import (
    ScanTensors,
    empty_outputs,
    empty_states,
    run_backward,
    run_forward,
)
from .scan_triton_mixer import triton_layer, triton_mixer

__all__ = ["selective_scan", "selective_scan_last", "triton_layer", "triton_mixer", "why_not"]

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


def selective_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan`, with the state in float32.

    Raises:
        ValueError, TypeError: shapes, devices or types do not fit.
        RuntimeError: Triton cannot run here.
    """
    return _scan((u_BLE, dt_BLE, A_EN, B_BLN, C_BLN), last=False)


def selective_scan_last(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan_last`, as `selective_scan` does."""
    return _scan((u_BLE, dt_BLE, A_EN, B_BLN, C_BN), last=True)


def _scan(inputs: tuple[Tensor, ...], *, last: bool) -> Tensor:
    check_inputs(inputs, last=last, scan="triton")
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    y, _ = _forward(*inputs, differentiated)
    return y


def _inputs(u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C: Tensor) -> ScanTensors:
    return ScanTensors(u_BLE, dt_BLE, A_EN.float().t().contiguous(), B_BLN, C)


@torch.library.custom_op(f"{NAMESPACE}::triton_scan", mutates_args=())
def _forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    return run_forward(_inputs(u, dt, A, B, C), reverse=False, keep_states=keep_states)


@_forward.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    inputs = _inputs(u, dt, A, B, C)
    return empty_outputs(inputs), empty_states(inputs, kept=keep_states)


@torch.library.custom_op(f"{NAMESPACE}::triton_scan_backward", mutates_args=())
def _backward(
    dy: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _inputs(u, dt, A, B, C)
    got = run_backward(inputs, dy, states, None, reverse=False)
    dA_EN = got.A.t().contiguous()
    return got.u, got.dt, dA_EN.to(A.dtype), got.B.to(B.dtype), got.C.to(C.dtype)


@_backward.register_fake
def _(_dy: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:5])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[1])


def _differentiate(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return (*_backward(dy, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_keep)
