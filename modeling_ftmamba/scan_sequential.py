"""The selective scan with its gradient written by hand: linear in L, forward and backward.

Autograd through the definition keeps every intermediate of every step. Here the whole decay is
computed at once, the recurrence runs in place over time-major memory, and the backward runs the
adjoint recurrence g_t = C_t dy_t + decay_{t+1} g_{t+1} in place in turn.

Shapes: B batch, L tokens, E channels, N numbers of state a channel; memory is (L, B, N, E), so
that a step touches contiguous memory and E is the vector axis; T is L - 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def selective_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan`, values and gradients, faster."""
    inputs = _in_state_type(u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)
    y_BLE = _Scan.apply(*inputs)
    return y_BLE.to(u_BLE.dtype)


def selective_scan_last(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
) -> Tensor:
    """Compute `scan_reference.selective_scan_last` in closed form, without a recurrence.

    With S_t the sum of dt after token t, y = sum_t (C . B_t exp(S_t A)) dt_t u_t. The exponents
    are never positive, so nothing overflows.
    """
    inputs = _in_state_type(u_BLE, dt_BLE, A_EN, B_BLN, C_BN)
    y_BE = _ScanLast.apply(*inputs)
    return y_BE.to(u_BLE.dtype)


def _in_state_type(*tensors: Tensor) -> list[Tensor]:
    state_type = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(state_type) for tensor in tensors]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
    ) -> Tensor:
        u_LBE, dt_LBE, B_LBN, C_LBN = (x.transpose(0, 1) for x in (u_BLE, dt_BLE, B_BLN, C_BLN))
        A_NE = A_EN.t().contiguous()
        decay_LBNE = torch.exp_(dt_LBE[:, :, None, :] * A_NE)
        state_LBNE = (dt_LBE * u_LBE)[:, :, None, :] * B_LBN[..., None]
        for t in range(1, len(state_LBNE)):
            state_LBNE[t].addcmul_(decay_LBNE[t], state_LBNE[t - 1])
        y_LBE = torch.matmul(C_LBN[:, :, None, :], state_LBNE).squeeze(2)
        ctx.save_for_backward(u_BLE, dt_BLE, A_NE, B_BLN, C_BLN, decay_LBNE, state_LBNE)
        return y_LBE.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLE: Tensor) -> tuple[Tensor, ...]:
        u_BLE, dt_BLE, A_NE, B_BLN, C_BLN, decay_LBNE, state_LBNE = ctx.saved_tensors
        u_LBE, dt_LBE, B_LBN, C_LBN, dy_LBE = (
            x.transpose(0, 1) for x in (u_BLE, dt_BLE, B_BLN, C_BLN, dy_BLE)
        )
        dC_LBN = torch.matmul(state_LBNE, dy_LBE[..., None]).squeeze(3)
        adjoint_LBNE = dy_LBE[:, :, None, :] * C_LBN[..., None]
        for t in range(len(adjoint_LBNE) - 2, -1, -1):
            adjoint_LBNE[t].addcmul_(decay_LBNE[t + 1], adjoint_LBNE[t + 1])
        dB_LBN = torch.matmul(adjoint_LBNE, (dt_LBE * u_LBE)[..., None]).squeeze(3)
        d_dtu_LBE = torch.matmul(B_LBN[:, :, None, :], adjoint_LBNE).squeeze(2)
        d_dt_LBE = d_dtu_LBE * u_LBE
        # d loss / d (dt_t A), which is zero at t = 0 because the state before it is zero.
        exponent_TBNE = adjoint_LBNE[1:].mul_(decay_LBNE[1:]).mul_(state_LBNE[:-1])
        d_dt_LBE[1:] += (exponent_TBNE * A_NE).sum(2)
        dA_NE = torch.einsum("tbne,tbe->ne", exponent_TBNE, dt_LBE[1:])
        # Contiguous: compiled graphs trust that a gradient has its input's strides.
        return (
            (d_dtu_LBE * dt_LBE).transpose(0, 1).contiguous(),
            d_dt_LBE.transpose(0, 1).contiguous(),
            dA_NE.t(),
            dB_LBN.transpose(0, 1),
            dC_LBN.transpose(0, 1),
        )


class _ScanLast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
    ) -> Tensor:
        A_NE = A_EN.t().contiguous()
        after_BLE = _sum_after(dt_BLE)
        decay_BLNE = torch.exp_(after_BLE[:, :, None, :] * A_NE)
        CB_BLN = C_BN[:, None, :] * B_BLN
        weight_BLE = torch.matmul(CB_BLN[:, :, None, :], decay_BLNE).squeeze(2)
        ctx.save_for_backward(u_BLE, dt_BLE, A_NE, B_BLN, C_BN, after_BLE, decay_BLNE, weight_BLE)
        return (weight_BLE * dt_BLE * u_BLE).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BE: Tensor) -> tuple[Tensor, ...]:
        u_BLE, dt_BLE, A_NE, B_BLN, C_BN, after_BLE, decay_BLNE, weight_BLE = ctx.saved_tensors
        dy_B1E = dy_BE[:, None, :]
        d_weight_BLE = dy_B1E * dt_BLE * u_BLE
        d_dtu_BLE = dy_B1E * weight_BLE
        dCB_BLN = torch.matmul(decay_BLNE, d_weight_BLE[..., None]).squeeze(3)
        CB_BLN = C_BN[:, None, :] * B_BLN
        exponent_BLNE = (d_weight_BLE[:, :, None, :] * CB_BLN[..., None]).mul_(decay_BLNE)
        dA_NE = torch.einsum("blne,ble->ne", exponent_BLNE, after_BLE)
        d_after_BLE = (exponent_BLNE * A_NE).sum(2)
        # Token t's step counts in the sums after every earlier token.
        d_dt_BLE = d_dtu_BLE * u_BLE + d_after_BLE.cumsum(1) - d_after_BLE
        return (
            d_dtu_BLE * dt_BLE,
            d_dt_BLE,
            dA_NE.t(),
            dCB_BLN * C_BN[:, None, :],
            (dCB_BLN * B_BLN).sum(1),
        )


def _sum_after(dt_BLE: Tensor) -> Tensor:
    """Return sum_{s > t} dt_s, added up from the end, so that it is zero at the last token."""
    return dt_BLE.flip(1).cumsum(1).flip(1) - dt_BLE
