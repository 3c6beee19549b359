"""The causal depthwise convolution over tokens with SiLU, by Triton kernels.

u_t = SiLU(bias + sum_k w_k x_(t - K + 1 + k)), each channel for itself; REVERSE, t counts from the
last token. See `triton_scan` for what is common to all kernels.

Shapes: B batch, L tokens, E channels, K kernel width, P groups of programs.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, RUF005

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

from .triton_launch import dense, device_of, n_groups, token_stride
from .triton_scan import lanes, load_float, sigmoid, zero_state

TOKENS = 16  # of a program of the forward pass
CHUNK = 64  # tokens of a program of the backward pass


@triton.jit
def load_weights(weight_ptr, channel, in_tile, K: tl.constexpr):
    """Return the K weights (E, K) of each channel."""
    weights = ()
    for k in tl.static_range(K):
        weights = weights + (load_float(weight_ptr + channel * K + k, in_tile),)
    return weights


@triton.jit
def slide(values, newest, K: tl.constexpr):
    """Return the last K - 1 of K values, and the newest."""
    kept = ()
    for k in tl.static_range(1, K):
        kept = kept + (values[k],)
    return kept + (newest,)


@triton.jit(do_not_specialize=["n_tokens", "L"])
def conv_forward(
    x_ptr, weight_ptr, bias_ptr, u_ptr, n_tokens, L, X_STRIDE: tl.constexpr, E: tl.constexpr, K:
    tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write u. A program takes a tile of tokens, whatever their records, and of channels."""
    STEP: tl.constexpr = -1 if REVERSE else 1
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    channel = pid % n_tiles * TILE + tl.arange(0, TILE)
    first = (pid // n_tiles).to(tl.int64) * TOKENS
    token = first + tl.arange(0, TOKENS)
    exists = (token < n_tokens)[:, None] & (channel < E)[None, :]
    t = ((first % L).to(tl.int32) + tl.arange(0, TOKENS)) % L
    n_before = L - 1 - t if REVERSE else t
    total = tl.zeros([TOKENS, TILE], tl.float32) + load_float(bias_ptr + channel, channel < E)
    for back in tl.static_range(K):
        x_at = x_ptr + (token - STEP * back)[:, None] * X_STRIDE + channel[None, :]
        x = load_float(x_at, exists & (n_before >= back)[:, None])
        total += x * load_float(weight_ptr + channel * K + K - 1 - back, channel < E)
    u = total * sigmoid(total)
    u_at = u_ptr + token[:, None] * E + channel[None, :]
    tl.store(u_at, u.to(u_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["n_rows", "L", "n_chunks"])
def conv_backward(
    x_ptr, weight_ptr, bias_ptr, du_ptr, dx_ptr, d_weight_ptr, d_bias_ptr, n_rows, L, n_chunks,
    X_STRIDE: tl.constexpr, DX_STRIDE: tl.constexpr, E: tl.constexpr, K: tl.constexpr, CHUNK:
    tl.constexpr, TILE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write the gradients; those of weight (K, E) and bias have a part for each group of programs.

    Program p takes tile p % n_tiles of chunk p // n_tiles and of every `n_groups`-th after it. It
    slides over the chunk's tokens, and K - 1 more, with K tokens of x and of the sums' gradients.
    """
    STEP: tl.constexpr = -1 if REVERSE else 1
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    group, n_groups = pid // n_tiles, tl.num_programs(0) // n_tiles
    channel = pid % n_tiles * TILE + tl.arange(0, TILE)
    in_tile = channel < E
    weights = load_weights(weight_ptr, channel, in_tile, K)
    bias = load_float(bias_ptr + channel, in_tile)
    d_weights, d_bias = zero_state(K, TILE), tl.zeros([TILE], tl.float32)
    for item in range(group, n_rows * n_chunks, n_groups):
        row = (item // n_chunks).to(tl.int64)
        start = item % n_chunks * CHUNK
        length = tl.minimum(CHUNK, L - start)
        token = row * L + (L - 1 - start if REVERSE else start)
        x_row, dx_row = x_ptr + token * X_STRIDE + channel, dx_ptr + token * DX_STRIDE + channel
        du_row = du_ptr + token * E + channel
        xs, d_totals = zero_state(K, TILE), zero_state(K, TILE)
        for back in tl.static_range(K - 1, 0, -1):
            before = lanes(channel, start >= back, E)
            xs = slide(xs, load_float(x_row - STEP * back * X_STRIDE, before), K)
        for i in range(0, length + K - 1):
            inside = lanes(channel, start + i < L, E)
            xs = slide(xs, load_float(x_row + i * STEP * X_STRIDE, inside), K)
            total = bias
            for k in tl.static_range(K):
                total += weights[k] * xs[k]
            gate = sigmoid(total)
            du = load_float(du_row + i * STEP * E, inside)
            d_total = du * gate * (1.0 + total * (1.0 - gate))
            d_totals = slide(d_totals, d_total, K)
            own = tl.where(i < length, d_total, 0.0)
            d_bias += own
            more, dx = (), tl.zeros([TILE], tl.float32)
            for k in tl.static_range(K):
                more = more + (d_weights[k] + own * xs[k],)
                dx += weights[K - 1 - k] * d_totals[k]
            d_weights = more
            dx_at = dx_row + (i - (K - 1)) * STEP * DX_STRIDE
            complete = lanes(channel, i >= K - 1, E)
            tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=complete)
    part = group.to(tl.int64)
    for k in tl.static_range(K):
        tl.store(d_weight_ptr + (part * K + k) * E + channel, d_weights[k], mask=in_tile)
    tl.store(d_bias_ptr + part * E + channel, d_bias, mask=in_tile)


def run_conv_forward(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, *, reverse: bool) -> Tensor:
    """Return SiLU(causal depthwise convolution of x)."""
    x_BLE, weight_EK = dense(x_BLE), weight_EK.contiguous()
    B, L, E = x_BLE.shape
    u_BLE = x_BLE.new_empty((B, L, E))
    if u_BLE.numel() == 0:
        return u_BLE
    tile = 128 if E > 64 else 64
    with device_of(x_BLE):
        conv_forward[(-(-B * L // TOKENS) * -(-E // tile),)](
            x_BLE, weight_EK, bias_E, u_BLE, B * L, L, X_STRIDE=token_stride(x_BLE), E=E,
            K=weight_EK.shape[1], TOKENS=TOKENS, TILE=tile, REVERSE=reverse, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return u_BLE


def run_conv_backward(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, du_BLE: Tensor, dx_BLE: Tensor, *, reverse:
    bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Write the gradient of x into dx, a tensor or a view of one; return weight's and bias's."""
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
            x_BLE, weight_EK, bias_E, du_BLE.contiguous(), dx_BLE, d_weight_PKE, d_bias_PE, B, L,
            n_chunks, X_STRIDE=token_stride(x_BLE), DX_STRIDE=token_stride(dx_BLE), E=E, K=K,
            CHUNK=CHUNK, TILE=tile, REVERSE=reverse, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return d_weight_PKE.sum(0).t().contiguous(), d_bias_PE.sum(0)
