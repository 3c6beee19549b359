"""Launches the Triton convolution over tokens with SiLU.

Shapes: B batch, L tokens, E channels, K kernel width, P groups of programs.
"""

import torch
from torch import Tensor

from .scan_triton_device import device_of, n_groups
from .scan_triton_launch import dense, token_stride

TOKENS = 16  # of a program of the forward pass
CHUNK = 64  # tokens of a program of the backward pass


def run_conv_forward(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, *, reverse: bool) -> Tensor:
    """Return SiLU(causal depthwise convolution of x)."""
    from .conv_triton_kernels import conv_forward

    x_BLE, weight_EK = dense(x_BLE), weight_EK.contiguous()
    B, L, E = x_BLE.shape
    u_BLE = x_BLE.new_empty((B, L, E))
    if u_BLE.numel() == 0:
        return u_BLE
    tile = 128 if E > 64 else 64
    with device_of(x_BLE):
        conv_forward[(-(-B * L // TOKENS) * -(-E // tile),)](
            x_BLE,
            weight_EK,
            bias_E,
            u_BLE,
            B * L,
            L,
            X_STRIDE=token_stride(x_BLE),
            E=E,
            K=weight_EK.shape[1],
            TOKENS=TOKENS,
            TILE=tile,
            REVERSE=reverse,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return u_BLE


def run_conv_backward(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    du_BLE: Tensor,
    dx_BLE: Tensor,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x into dx, a tensor or a view of one; return weight's and bias's."""
    from .conv_triton_kernels import conv_backward

    x_BLE, weight_EK = dense(x_BLE), weight_EK.contiguous()
    B, L, E = x_BLE.shape
    K = weight_EK.shape[1]
    if x_BLE.numel() == 0:
        return weight_EK.new_zeros((E, K)), weight_EK.new_zeros(E)
    tile = 32 if K > 8 else 64 if K > 4 or E <= 64 else 128
    n_chunks, n_tiles = -(-L // CHUNK), -(-E // tile)
    P = n_groups(x_BLE.device, n_tiles, B * n_chunks)
    d_weight_PKE = weight_EK.new_empty((P, K, E), dtype=torch.float32)
    d_bias_PE = d_weight_PKE.new_empty((P, E))
    with device_of(x_BLE):
        conv_backward[(P * n_tiles,)](
            x_BLE,
            weight_EK,
            bias_E,
            du_BLE.contiguous(),
            dx_BLE,
            d_weight_PKE,
            d_bias_PE,
            B,
            L,
            n_chunks,
            X_STRIDE=token_stride(x_BLE),
            DX_STRIDE=token_stride(dx_BLE),
            E=E,
            K=K,
            CHUNK=CHUNK,
            TILE=tile,
            REVERSE=reverse,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return d_weight_PKE.sum(0).t().contiguous(), d_bias_PE.sum(0)
