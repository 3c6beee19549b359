"""The selective scan by the kernels of the package mamba_ssm, where it is installed.

Shapes: B batch, L tokens, E channels, N numbers of state.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .scan_inputs import check_inputs
from .scan_sequential import selective_scan as sequential_scan

NAMESPACE = re.sub(r"\W", "_", __package__ or __name__)
HOW = "pip install mamba-ssm, with a CUDA toolkit, and MAMBA_FORCE_BUILD=TRUE where no wheel fits"


def why_not() -> str | None:
    """Return None where mamba_ssm's scan can run on this machine, else the reason and remedy."""
    try:
        _kernel()
    except ImportError as error:
        return f"the mamba_ssm scan cannot run here: {error}; {HOW}, or model.set_scan('auto')"
    if not torch.cuda.is_available():
        return (
            "the mamba_ssm scan cannot run here: it needs a GPU, and torch.cuda.is_available() is "
            "False; install torch for CUDA, or model.set_scan('auto')"
        )
    return None


def selective_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan`, with the state in float32.

    Raises:
        ValueError, TypeError: shapes, devices or types do not fit.
        ImportError: mamba_ssm, or its kernel, is not installed.
    """
    inputs = (u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)
    check_inputs(inputs, last=False, scan="mamba_ssm")
    if u_BLE.numel() == 0:
        return sequential_scan(*inputs)
    # A graph cannot hold their operator, and holding it in ours runs the forward once more.
    run = _opaque if torch.compiler.is_compiling() else _run
    return run(*inputs)


def selective_scan_last(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan_last`: their kernel has no form for less work."""
    inputs = (u_BLE, dt_BLE, A_EN, B_BLN, C_BN)
    check_inputs(inputs, last=True, scan="mamba_ssm")
    return selective_scan(u_BLE, dt_BLE, A_EN, B_BLN, C_BN[:, None].expand_as(B_BLN))[:, -1]


def _kernel() -> Callable[..., Tensor]:
    try:
        from mamba_ssm.ops import selective_scan_interface
    except ImportError as error:
        raise ImportError(f"mamba_ssm does not import ({error})") from error
    if getattr(selective_scan_interface, "selective_scan_cuda", True) is None:
        raise ImportError("mamba_ssm is installed without its kernel selective_scan_cuda")
    kernel: Callable[..., Tensor] = selective_scan_interface.selective_scan_fn
    return kernel


def _laid_out(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs as their kernel takes them.

    Channels or states come before tokens, A is in float32, and all others are of one type.
    """
    u_BLE, dt_BLE, A_EN, B_BLN, C_BLN = inputs
    tensors = (u_BLE, dt_BLE, B_BLN, C_BLN)
    common = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    u_BEL, dt_BEL, B_BNL, C_BNL = (x.to(common).transpose(1, 2).contiguous() for x in tensors)
    return u_BEL, dt_BEL, A_EN.float(), B_BNL, C_BNL


def _run(*inputs: Tensor) -> Tensor:
    y_BEL = _kernel()(*_laid_out(inputs), delta_softplus=False)
    return y_BEL.transpose(1, 2).to(inputs[0].dtype)


@torch.library.custom_op(f"{NAMESPACE}::mamba_ssm_scan", mutates_args=())
def _opaque(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return _run(u, dt, A, B, C).contiguous()


@_opaque.register_fake
def _(u: Tensor, *_: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op(f"{NAMESPACE}::mamba_ssm_scan_backward", mutates_args=())
def _opaque_backward(
    dy: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u, dt, A, B, C)
    # Inside an operator only their function is differentiated, not what lays out its inputs.
    theirs = [tensor.detach().requires_grad_() for tensor in _laid_out(inputs)]
    with torch.enable_grad():
        y_BEL = _kernel()(*theirs, delta_softplus=False)
    dy_BEL = dy.transpose(1, 2).to(y_BEL.dtype)
    du_BEL, d_dt_BEL, dA_EN, dB_BNL, dC_BNL = torch.autograd.grad(y_BEL, theirs, dy_BEL)
    turned = (x.transpose(1, 2).contiguous() for x in (du_BEL, d_dt_BEL, dB_BNL, dC_BNL))
    du_BLE, d_dt_BLE, dB_BLN, dC_BLN = turned
    gradients = (du_BLE, d_dt_BLE, dA_EN, dB_BLN, dC_BLN)
    du, d_dt, dA, dB, dC = (d.to(x.dtype) for d, x in zip(gradients, inputs, strict=True))
    return du, d_dt, dA, dB, dC


@_opaque_backward.register_fake
def _(_dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return _opaque_backward(dy, *ctx.saved_tensors)


_opaque.register_autograd(_differentiate, setup_context=_keep)
