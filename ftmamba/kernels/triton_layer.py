"""A Mamba mixer of Triton kernels and matrix products, and the selective scan alone, on a GPU.

Each is one custom operator with its gradient, so that compiled graphs hold it whole; the mixer's
stands between two linears. Operators are registered under the name of this copy of the code: one
from the Hub and an installed one live in one process.

The backward computes the convolution and dt again rather than keep them, and writes the gradients
of x and of the gate side by side, where the input linear's backward wants them.

Shapes: B batch, L tokens, D hidden, E inner channels, N numbers of state, R rank of dt, K kernel
width, X = R + 2N, J borders between chunks of tokens, M = B L.
"""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import NARROW, MambaParameters, check_scan, is_kept
from .triton_launch import (
    ScanTensors,
    empty_outputs,
    empty_states,
    refuse_elsewhere,
    run_backward,
    run_forward,
)  # fmt: skip

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)


def triton_mixer(
    hidden_BLD: Tensor, parameters: MambaParameters, *, last: bool, reverse: bool
) -> Tensor:
    """Return the mixed tokens (B, L, D) as the model's `MambaMixer` does, or the last one (B, D).

    Args:
        hidden_BLD: the tokens, after the norm.
        parameters: the mixer's weights; linears run in their type, or in autocast's.
        last: whether to return the last token alone, for less work.
        reverse: whether to mix from the last token to the first.

    Raises:
        ValueError, TypeError: the tokens have another shape or type.
        RuntimeError: Triton cannot run here.
    """
    if hidden_BLD.dim() != 3 or (last and hidden_BLD.shape[1] == 0):
        raise ValueError(
            "the triton mixer takes (batch, tokens, hidden), and one token at least where the "
            f"last is asked for, got {tuple(hidden_BLD.shape)}"
        )
    if last and reverse:
        # From the right, the last token comes first and has seen itself alone.
        hidden_BLD = hidden_BLD[:, -1:]
    inner, conv_bias_E = parameters.D.shape[0], parameters.conv_bias
    x = F.linear(hidden_BLD, parameters.in_proj[:inner] if last else parameters.in_proj)
    _check_type(x)
    tensors = [
        x,
        parameters.conv_weight,
        torch.zeros_like(parameters.D) if conv_bias_E is None else conv_bias_E,
        parameters.x_proj.to(x.dtype),
        parameters.dt_weight.to(x.dtype),
        parameters.dt_bias,
        -torch.exp(parameters.A_log.float()),
        parameters.D,
    ]
    if last:
        tensors.append(F.linear(hidden_BLD[:, -1], parameters.in_proj[inner:]))
    y, _, _ = _forward(tensors, reverse and not last, is_kept(*tensors))
    return F.linear(y, parameters.out_proj)


def triton_layer(
    hidden_BLD: Tensor, parameters: MambaParameters, norm: tuple[Tensor, Tensor | None, float] |
    None, *, residual: bool, last: bool, reverse: bool,
) -> Tensor:  # fmt: skip
    """Return [hidden +] mixer(norm(hidden)), each part if asked for; see `triton_mixer`."""
    normed_BLD = hidden_BLD
    if norm is not None:
        weight_D, bias_D, eps = norm
        normed_BLD = F.layer_norm(hidden_BLD, weight_D.shape, weight_D, bias_D, eps)
    mixed = triton_mixer(normed_BLD, parameters, last=last, reverse=reverse)
    if not residual:
        return mixed
    return (hidden_BLD[:, -1] if last else hidden_BLD) + mixed


def _check_type(tensor: Tensor) -> None:
    if tensor.dtype not in NARROW:
        raise TypeError(
            f"the triton scan takes float32, bfloat16 and float16, got {tensor.dtype}; convert it, "
            "or model.set_scan('sequential')"
        )


class _Tensors(NamedTuple):
    """What the operator takes: x and the gate in one (B, L, F), or x (B, L, E) and gate (B, E)."""

    x: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    gate: Tensor | None = None

    def convolve(self, *, reverse: bool) -> Tensor:
        from .triton_conv import run_conv_forward

        x_BLE = self.x[..., : len(self.D)]
        return run_conv_forward(x_BLE, self.conv_weight[:, 0], self.conv_bias, reverse=reverse)

    def scan_tensors(self, u_BLE: Tensor, projected_BLX: Tensor) -> ScanTensors:
        """Return the scan's inputs, with dt multiplied out of its rank."""
        rank, states = self.dt_weight.shape[1], self.A.shape[1]
        dt_BLR, B_BLN, C_BLN = projected_BLX.split([rank, states, states], -1)
        return ScanTensors(
            u_BLE, F.linear(dt_BLR, self.dt_weight), self.A.t().contiguous(), B_BLN, C_BLN if
            self.gate is None else C_BLN[:, -1].contiguous(), self.D, self.dt_bias, self.x[...,
            len(self.D) :] if self.gate is None else self.gate,
        )  # fmt: skip


@torch.library.custom_op(f"{NAMESPACE}::triton_mixer", mutates_args=())
def _forward(
    tensors: list[Tensor], reverse: bool, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mixer = _Tensors(*tensors)
    refuse_elsewhere(mixer.x)
    u_BLE = mixer.convolve(reverse=reverse)
    projected_BLX = F.linear(u_BLE, mixer.x_proj)
    inputs = mixer.scan_tensors(u_BLE, projected_BLX)
    y, states_BJNE = run_forward(inputs, reverse=reverse, keep_states=keep_states)
    return y, projected_BLX, states_BJNE


@_forward.register_fake
def _(tensors: list[Tensor], _reverse: bool, keep_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    mixer = _Tensors(*tensors)
    B, L, _ = mixer.x.shape
    X, E = mixer.x_proj.shape
    u_BLE, projected_BLX = mixer.x.new_empty((B, L, E)), mixer.x.new_empty((B, L, X))
    inputs = mixer.scan_tensors(u_BLE, projected_BLX)
    return empty_outputs(inputs), projected_BLX, empty_states(inputs, kept=keep_states)


@torch.library.custom_op(f"{NAMESPACE}::triton_mixer_backward", mutates_args=())
def _backward(
    dy: Tensor, tensors: list[Tensor], projected: Tensor, states: Tensor, reverse: bool
) -> list[Tensor]:
    from .triton_conv import run_conv_backward

    mixer = _Tensors(*tensors)
    x, E = mixer.x, len(mixer.D)
    u_BLE = mixer.convolve(reverse=reverse)
    dx = x.new_empty(x.shape)
    d_gate = dx[..., E:] if mixer.gate is None else x.new_empty(mixer.gate.shape)
    inputs = mixer.scan_tensors(u_BLE, projected)
    scan = run_backward(inputs, dy, states, d_gate, reverse=reverse)
    d_dt_ME, du_ME = scan.dt.flatten(0, 1), scan.u.flatten(0, 1)
    d_projected_MX = _gradient_of_projected(mixer, scan).flatten(0, 1)
    du_ME.addmm_(d_projected_MX, mixer.x_proj)
    d_conv_weight_EK, d_conv_bias_E = run_conv_backward(
        x[..., :E], mixer.conv_weight[:, 0], mixer.conv_bias, scan.u, dx[..., :E], reverse=reverse,
    )  # fmt: skip
    dt_MR = projected.flatten(0, 1)[:, : mixer.dt_weight.shape[1]]
    gradients = [
        dx,
        d_conv_weight_EK[:, None],
        d_conv_bias_E,
        d_projected_MX.t() @ u_BLE.flatten(0, 1),
        d_dt_ME.t() @ dt_MR,
        scan.bias,
        scan.A.t().contiguous(),
        scan.D,
    ]
    if mixer.gate is not None:
        gradients.append(d_gate)
    pairs = zip(gradients, tensors, strict=True)
    return [gradient.to(x.dtype) for gradient, x in pairs if gradient is not None]


def _gradient_of_projected(mixer: _Tensors, scan: ScanTensors) -> Tensor:
    """Return the gradient (B, L, X) of what x_proj gave."""
    dC_BLN = scan.C
    if mixer.gate is not None:
        dC_BLN = F.pad(scan.C[:, None], (0, 0, scan.B.shape[1] - 1, 0))
    d_dt_BLR = scan.dt @ mixer.dt_weight
    return torch.cat([d_dt_BLR, scan.B.to(d_dt_BLR), dC_BLN.to(d_dt_BLR)], -1)


@_backward.register_fake
def _(_dy: Tensor, tensors: list[Tensor], *_: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, ctx.reverse, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], output[2], *tensors)


def _differentiate(ctx: Any, dy: Tensor, *_: None) -> tuple[list[Tensor], None, None]:
    projected_BLX, states_BJNE, *tensors = ctx.saved_tensors
    return _backward(dy, tensors, projected_BLX, states_BJNE, ctx.reverse), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def triton_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Return y (B, L, E) of the selective scan alone, with the state in float32.

    Raises:
        ValueError, TypeError: shapes, devices or types do not fit.
        RuntimeError: Triton cannot run here.
    """
    tensors = (u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)
    check_scan(tensors)
    for tensor in tensors:
        _check_type(tensor)
    y_BLE: Tensor = _scan_forward(*tensors, is_kept(*tensors))[0]
    return y_BLE


def _scan_inputs(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> ScanTensors:
    return ScanTensors(u, dt, A.float().t().contiguous(), B, C)


@torch.library.custom_op(f"{NAMESPACE}::triton_scan", mutates_args=())
def _scan_forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    return run_forward(_scan_inputs(u, dt, A, B, C), reverse=False, keep_states=keep_states)


@_scan_forward.register_fake
def _(*tensors: Any) -> tuple[Tensor, Tensor]:
    inputs = _scan_inputs(*tensors[:5])
    return empty_outputs(inputs), empty_states(inputs, kept=tensors[5])


@torch.library.custom_op(f"{NAMESPACE}::triton_scan_backward", mutates_args=())
def _scan_backward(dy: Tensor, states: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    got = run_backward(_scan_inputs(*tensors), dy, states, None, reverse=False)
    gradients = (got.u, got.dt, got.A.t().contiguous(), got.B, got.C)
    return [gradient.to(x.dtype) for gradient, x in zip(gradients, tensors, strict=True)]


@_scan_backward.register_fake
def _(_dy: Tensor, _states: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _keep_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[1])


def _differentiate_scan(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *tensors, states = ctx.saved_tensors
    return (*_scan_backward(dy, states, tensors), None)


_scan_forward.register_autograd(_differentiate_scan, setup_context=_keep_scan)
