"""The selective scan alone on CPUs: `torch.ops.ftmamba.selective_scan`, with its gradient.

Shapes: B batch, L tokens, E inner channels, N state.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_scan, float32
from .library import ScanCall
from .states import as_pointers, is_kept, library, state_shape


@torch.library.custom_op("ftmamba::selective_scan", mutates_args=(), device_types="cpu")
def scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, last: bool, keep_states: bool
) -> tuple[Tensor, Tensor]:
    """Return y (B, L, E), or (B, E) of the last token, and the states to keep."""
    call, _alive = _call({"u": u, "dt": dt, "A": A, "B": B, "C": C}, last=last)
    y, states = _empty_outputs(u, A, last=last, keep_states=keep_states)
    if y.numel():
        call.y, call.states = y.data_ptr(), states.data_ptr() or None
        library().run("scan_forward", call)
    return y, states


@scan.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    u, _, A, _, _, last, keep_states = inputs
    return _empty_outputs(u, A, last=last, keep_states=keep_states)


@torch.library.custom_op("ftmamba::selective_scan_backward", mutates_args=(), device_types="cpu")
def scan_backward(  # noqa: PLR0913 - an operator takes every tensor by itself
    d_y: Tensor, states: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, last: bool
) -> list[Tensor]:
    """Return the gradients of u, dt, A, B and C."""
    tensors = {"u": u, "dt": dt, "A": A, "B": B, "C": C}
    if not u.numel():
        return [torch.zeros_like(tensor) for tensor in tensors.values()]
    gradients = {f"d_{name}": u.new_empty(tensor.shape) for name, tensor in tensors.items()}
    call, _alive = _call(tensors, last=last)
    d_y = d_y.contiguous()
    call.d_y, call.states = d_y.data_ptr(), states.data_ptr() or None
    for name, gradient in gradients.items():
        setattr(call, name, gradient.data_ptr())
    library().run("scan_backward", call)
    return list(gradients.values())


@scan_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    u, *others = inputs[2:-1]
    return [u.new_empty(tensor.shape) for tensor in (u, *others)]


def _empty_outputs(u: Tensor, A: Tensor, *, last: bool, keep_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, inner = u.shape
    shape = state_shape(batch, length, *A.shape) if keep_states else (0,)
    return u.new_empty((batch, inner) if last else u.shape), u.new_empty(shape)


def _call(tensors: dict[str, Tensor], *, last: bool) -> tuple[ScanCall, list[Tensor]]:
    check_scan(tensors, last=last)
    pointers, alive = as_pointers(tensors)
    (rows, length, inner), state = tensors["u"].shape, tensors["A"].shape[1]
    threads = min(max(rows, 1), library().threads_for(rows * length * inner * state))
    call = ScanCall(
        rows=rows, length=length, inner=inner, state=state, threads=threads, last=last, **pointers
    )
    return call, alive


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.last = inputs[5]


def _backward(ctx: Any, d_y: Tensor | None, _d_states: None) -> tuple[Any, ...]:
    *tensors, states = ctx.saved_tensors
    if d_y is None:
        return (None,) * 7
    return (*scan_backward(d_y, states, *tensors, ctx.last), None, None)


scan.register_autograd(_backward, setup_context=_keep_for_backward)
scan.register_autocast("cpu", torch.float32)


def selective_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan` in float32; y_BLE is of u's type.

    Raises:
        RuntimeError: a tensor is not on the CPU.
        TypeError: a tensor is not of floating point, or float64.
        ValueError: shapes do not fit each other.
    """
    tensors = [float32(tensor) for tensor in (u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)]
    y_BLE: Tensor = scan(*tensors, False, is_kept(*tensors))[0]
    return y_BLE.to(u_BLE.dtype)


def selective_scan_last(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
) -> Tensor:
    """Compute only the last token's output y_BE of `selective_scan`; C_BN is the last token's."""
    tensors = [float32(tensor) for tensor in (u_BLE, dt_BLE, A_EN, B_BLN, C_BN)]
    y_BE: Tensor = scan(*tensors, True, is_kept(*tensors))[0]
    return y_BE.to(u_BLE.dtype)
