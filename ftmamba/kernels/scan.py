"""The selective scan alone by the C kernel, for mixers that the fused layer does not take.

A part has a hook or an adapter, or steps depend on gaps.

Shapes: B batch, L tokens, E inner channels, N state.
"""

from typing import Any

import torch
from torch import Tensor

from .library import ScanCall, as_pointers, check_scan, float32, is_kept, library, state_shape

NAMES = ("u", "dt", "A", "B", "C")


@torch.library.custom_op("ftmamba::selective_scan", mutates_args=(), device_types="cpu")
def scan_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, E), and the states to keep."""
    call, _alive = _call([u, dt, A, B, C])
    y, states = _empty_outputs(u, A, keep_states=keep_states)
    if y.numel():
        call.y, call.states = y.data_ptr(), states.data_ptr() or None
        library().run("scan_forward", call)
    return y, states


@scan_op.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(inputs[0], inputs[2], keep_states=inputs[5])


@torch.library.custom_op("ftmamba::selective_scan_backward", mutates_args=(), device_types="cpu")
def scan_backward(d_y: Tensor, states: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return the gradients of u, dt, A, B and C."""
    if not tensors[0].numel():
        return [torch.zeros_like(tensor) for tensor in tensors]
    gradients = [tensor.new_empty(tensor.shape) for tensor in tensors]
    call, _alive = _call(tensors)
    d_y = d_y.contiguous()
    call.d_y, call.states = d_y.data_ptr(), states.data_ptr() or None
    for name, gradient in zip(NAMES, gradients, strict=True):
        setattr(call, f"d_{name}", gradient.data_ptr())
    library().run("scan_backward", call)
    return gradients


@scan_backward.register_fake
def _(_d_y: Tensor, _states: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _empty_outputs(u: Tensor, A: Tensor, *, keep_states: bool) -> tuple[Tensor, Tensor]:
    shape = state_shape(*u.shape[:2], *A.shape) if keep_states else (0,)
    return u.new_empty(u.shape), u.new_empty(shape)


def _call(tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    check_scan(tensors)
    pointers, alive = as_pointers(dict(zip(NAMES, tensors, strict=True)))
    (rows, length, inner), state = tensors[0].shape, tensors[2].shape[1]
    threads = min(max(rows, 1), library().threads_for(rows * length * inner * state))
    call = ScanCall(rows=rows, length=length, inner=inner, state=state, threads=threads, **pointers)
    return call, alive


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[1])


def _backward(ctx: Any, d_y: Tensor | None, _d_states: None) -> tuple[Any, ...]:
    *tensors, states = ctx.saved_tensors
    gradients = [None] * 5 if d_y is None else scan_backward(d_y, states, tensors)
    return (*gradients, None)


scan_op.register_autograd(_backward, setup_context=_keep_for_backward)


def cpu_scan(u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
    """Return y (B, L, E) of u's type, computed in float32.

    Raises:
        RuntimeError: a tensor is not on the CPU.
        TypeError: a tensor is not of floating point, or float64.
        ValueError: shapes do not fit each other.
    """
    tensors = [float32(tensor) for tensor in (u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)]
    y_BLE: Tensor = scan_op(*tensors, is_kept(*tensors))[0]
    return y_BLE.to(u_BLE.dtype)
