"""The depthwise causal convolution of the Mamba mixers, with SiLU after it.

Token-major shifted products: for kernels of a few tokens cheaper than a transposed conv1d.

Shapes: B batch, L tokens, X channels, K kernel width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def causal_conv_silu(x_BLX: Tensor, weight_X1K: Tensor, bias_X: Tensor | None) -> Tensor:
    """Convolve each channel over the tokens up to the present one, then apply SiLU.

    Args:
        x_BLX: tokens, of any strides.
        weight_X1K: as `nn.Conv1d` keeps it for as many groups as channels.
        bias_X: or None.

    Returns:
        A tensor of x's shape and type.
    """
    taps_KX = weight_X1K[:, 0].t().to(x_BLX.dtype)
    bias_X = taps_KX.new_zeros(taps_KX.shape[1]) if bias_X is None else bias_X.to(x_BLX.dtype)
    y_BLX: Tensor = _ConvSiLU.apply(x_BLX, taps_KX, bias_X)
    return y_BLX


def convolve(x_BLX: Tensor, taps_KX: Tensor, bias_X: Tensor, out_BLX: Tensor) -> None:
    """Write the convolution into `out_BLX`; the last tap is the present token's."""
    width, length = len(taps_KX), x_BLX.shape[1]
    torch.addcmul(bias_X, x_BLX, taps_KX[-1], out=out_BLX)
    for back in range(1, min(width, length)):
        out_BLX[:, back:].addcmul_(x_BLX[:, : length - back], taps_KX[width - 1 - back])


def convolve_backward(
    dy_BLX: Tensor, x_BLX: Tensor, taps_KX: Tensor, dx_BLX: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x into `dx_BLX`; return those of the taps and of the bias."""
    width, length = len(taps_KX), x_BLX.shape[1]
    torch.mul(dy_BLX, taps_KX[-1], out=dx_BLX)
    dtaps_KX = torch.zeros_like(taps_KX)
    dtaps_KX[-1] = (dy_BLX * x_BLX).sum((0, 1))
    for back in range(1, min(width, length)):
        tap = width - 1 - back
        dx_BLX[:, : length - back].addcmul_(dy_BLX[:, back:], taps_KX[tap])
        dtaps_KX[tap] = (dy_BLX[:, back:] * x_BLX[:, : length - back]).sum((0, 1))
    return dtaps_KX, dy_BLX.sum((0, 1))


class _ConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLX: Tensor, taps_KX: Tensor, bias_X: Tensor) -> Tensor:
        total_BLX = torch.empty_like(x_BLX, memory_format=torch.contiguous_format)
        convolve(x_BLX, taps_KX, bias_X, total_BLX)
        ctx.save_for_backward(x_BLX, taps_KX, total_BLX)
        return F.silu(total_BLX)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLX, taps_KX, total_BLX = ctx.saved_tensors
        d_total_BLX = torch.ops.aten.silu_backward(dy_BLX, total_BLX)
        dx_BLX = torch.empty_like(total_BLX)
        dtaps_KX, dbias_X = convolve_backward(d_total_BLX, x_BLX, taps_KX, dx_BLX)
        return dx_BLX, dtaps_KX, dbias_X
