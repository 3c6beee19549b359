"""The selective scan as its definition reads (Gu & Dao 2023, equations 1 and 2; Algorithm 2).

Shapes: B batch, L tokens, E channels, N numbers of state a channel.
"""

import torch
from torch import Tensor


def selective_scan(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and return y_t = C_t h_t.

    The state is kept in float32, or float64 for float64 inputs, whatever the inputs' type. The
    skip connection D u and the gate belong to the mixer.

    Args:
        u_BLE: input, after convolution and SiLU.
        dt_BLE: time steps, positive, after softplus.
        A_EN: negative decay rates.
        B_BLN: input matrix of each token.
        C_BLN: output matrix of each token.

    Returns:
        y_BLE of u's type.
    """
    state_type = torch.promote_types(u_BLE.dtype, torch.float32)
    u, dt, A, B, C = (x.to(state_type) for x in (u_BLE, dt_BLE, A_EN, B_BLN, C_BLN))
    state_BEN = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for u_BE, dt_BE, B_BN, C_BN in zip(
        u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        decay_BEN = torch.exp(dt_BE[:, :, None] * A)
        state_BEN = decay_BEN * state_BEN + (dt_BE * u_BE)[:, :, None] * B_BN[:, None, :]
        outputs.append(torch.einsum("ben,bn->be", state_BEN, C_BN))
    return torch.stack(outputs, 1).to(u_BLE.dtype)


def selective_scan_last(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BN: Tensor
) -> Tensor:
    """Return only the last token's output y_BE of `selective_scan`; C_BN is the last token's."""
    C_BLN = C_BN[:, None, :].expand_as(B_BLN)
    return selective_scan(u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)[:, -1]
