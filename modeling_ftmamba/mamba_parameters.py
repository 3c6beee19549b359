"""The parameters of a Mamba-1 mixer as a fused implementation takes them.

Shapes: D hidden, E inner channels, N state, R rank of dt, K kernel width.
"""

from typing import NamedTuple

from torch import Tensor


class MambaParameters(NamedTuple):
    """Weights of one mixer, in mamba-ssm's layout.

    Attributes:
        in_proj: (2E, D); rows 0 to E make x, rows E to 2E the gate.
        conv_weight: (E, 1, K).
        conv_bias: (E,) or None.
        x_proj: (R + 2N, E); its outputs are dt of low rank, B and C.
        dt_weight: (E, R).
        dt_bias: (E,).
        A_log: (E, N), float32; A = -exp(A_log).
        D: (E,), skip connection.
        out_proj: (D, E).
    """

    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_proj: Tensor
