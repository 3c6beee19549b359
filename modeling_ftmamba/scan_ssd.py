"""The scan of Mamba-2 (Dao & Gu 2024, "state space duality"): one decay a head and token.

The definition, which is slow and obvious, and a fast form as products over chunks of tokens, for
any device and, with float32 decays and state, for narrow types.

Shapes: B batch, L tokens, H heads, P channels a head, N state, Q tokens asked for (L, or 1),
G chunks of a row; J and T as in `ssd_chunks.py`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .ssd_chunks import (
    SMALLEST_STEP,
    ChunkPlan,
    Chunks,
    plan_chunks,
    scan_chunks,
    scan_chunks_backward,
)

# Longest chunk: on a CPU the state costs as much as 48 tokens' pairs, on a GPU tiles are cheap.
LONGEST_ON_CPU = 48
LONGEST_ON_GPU = 64


class SSDInputs(NamedTuple):
    """What the scan reads.

    Attributes:
        u: input, after convolution and SiLU.
        dt: time steps, after softplus, so not negative.
        A: negative decay rates.
        B: input matrix of each token, the same for all heads.
        C: output matrix of each token.
        D: skip connection.
    """

    u: Tensor  # (B, L, H, P)
    dt: Tensor  # (B, L, H)
    A: Tensor  # (H,)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N)
    D: Tensor  # (H,)


def ssd_reference(inputs: SSDInputs) -> Tensor:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t; return y_t = C_t h_t + D u_t.

    The state is kept in float32, or float64 for float64 inputs, whatever the inputs' type.

    Returns:
        y_BLHP of u's type.
    """
    state_type = torch.promote_types(inputs.u.dtype, torch.float32)
    u, dt, A, B, C, D = (x.to(state_type) for x in inputs)
    state_BHPN = u.new_zeros(u.shape[0], *u.shape[2:], B.shape[2])
    outputs = [u[:, :0]]
    for u_BHP, dt_BH, B_BN, C_BN in zip(
        u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        added_BHPN = (dt_BH[:, :, None] * u_BHP)[..., None] * B_BN[:, None, None, :]
        state_BHPN = torch.exp(dt_BH * A)[:, :, None, None] * state_BHPN + added_BHPN
        y_BHP = torch.einsum("bhpn,bn->bhp", state_BHPN, C_BN) + D[:, None] * u_BHP
        outputs.append(y_BHP[:, None])
    return torch.cat(outputs, 1).to(inputs.u.dtype)


def ssd(inputs: SSDInputs) -> Tensor:
    """Compute `ssd_reference`, values and gradients, by matrix products.

    Raises:
        ValueError: the shapes do not fit each other, or, on a CPU, a time step is negative.
    """
    _check(inputs)
    return _run(inputs, last=False)


def ssd_last(inputs: SSDInputs) -> Tensor:
    """Return the last token's output (B, H, P) of `ssd`, without a recurrence.

    With S_t the sum of dt after token t, y = sum_t (C . B_t) exp(S_t A) dt_t u_t + D u. The
    exponents are never positive, so nothing overflows.
    """
    _check(inputs)
    if inputs.u.shape[1] == 0:
        raise ValueError("ssd_last needs at least one token, got none")
    return _run(inputs, last=True)[:, 0]


def longest_chunk(device: torch.device) -> int:
    """Return the longest chunk that is worth its pairs."""
    return LONGEST_ON_CPU if device.type == "cpu" else LONGEST_ON_GPU


def cut(x_BLHP: Tensor, plan: ChunkPlan) -> Tensor:
    """Return (H, J, T, P): the tokens of a row padded to whole chunks, heads first."""
    length = plan.n_chunks * len(plan.pair)
    x_BVHP = F.pad(x_BLHP, (0, 0, 0, 0, 0, length - x_BLHP.shape[1]))
    x_BGTHP = x_BVHP.unflatten(1, (plan.n_chunks, -1))
    return x_BGTHP.permute(3, 0, 1, 2, 4).flatten(1, 2).contiguous()


def joined(y_HJTP: Tensor, plan: ChunkPlan, length: int) -> Tensor:
    """Return a view (B, L, H, P): the inverse of `cut`."""
    y_HBVP = y_HJTP.unflatten(1, (-1, plan.n_chunks)).flatten(2, 3)
    return y_HBVP[:, :, :length].permute(1, 2, 0, 3)


def _run(inputs: SSDInputs, *, last: bool) -> Tensor:
    if inputs.u.shape[1] == 0:
        return inputs.u.clone()
    wide = torch.promote_types(inputs.u.dtype, torch.float32)
    u, dt, A, B, C, D = inputs
    with torch.autocast(u.device.type, enabled=False):
        y_BQHP: Tensor = _Scan.apply(last, u, dt.to(wide), A.to(wide), B, C, D.to(wide))
    return y_BQHP


def _check(inputs: SSDInputs) -> None:
    if inputs.u.ndim != 4 or inputs.B.ndim != 3:
        raise ValueError(
            "u must have shape (batch, tokens, heads, channels) and B (batch, tokens, state), got "
            f"{tuple(inputs.u.shape)} and {tuple(inputs.B.shape)}"
        )
    batch, length, heads, _ = inputs.u.shape
    state = inputs.B.shape[-1]
    wanted = {
        "dt": (inputs.dt, (batch, length, heads)),
        "A": (inputs.A, (heads,)),
        "B": (inputs.B, (batch, length, state)),
        "C": (inputs.C, (batch, length, state)),
        "D": (inputs.D, (heads,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} beside u of {tuple(inputs.u.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    # Not on a GPU, which would have to be waited for.
    on_cpu = inputs.dt.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and bool((inputs.dt < 0).any()):
        raise ValueError(
            f"dt must not be negative, got {inputs.dt.min().item():.3g}; apply softplus to it"
        )


def _chunks(inputs: SSDInputs, plan: ChunkPlan) -> Chunks:
    u, dt, _, B, C, _ = inputs
    u_HJTP, dt_HJT = cut(u, plan), cut(dt[..., None], plan)[..., 0]
    B_JTN, C_JTN = cut(B[:, :, None], plan)[0], cut(C[:, :, None], plan)[0]
    C_JQN = C_JTN[:, -1:] if plan.last else C_JTN
    return Chunks(u_HJTP, B_JTN, C_JQN, dt_HJT.clamp_min(SMALLEST_STEP))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, last: bool, *tensors: Tensor) -> Tensor:
        inputs = SSDInputs(*tensors)
        length = inputs.u.shape[1]
        longest = longest_chunk(inputs.u.device)
        plan = plan_chunks(length, longest, inputs.A, inputs.D, last=last)
        y_HJQP, _, _ = scan_chunks(_chunks(inputs, plan), plan)
        ctx.save_for_backward(*tensors)
        ctx.last = last
        return joined(y_HJQP, plan, length).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BQHP: Tensor) -> tuple[Tensor | None, ...]:
        inputs = SSDInputs(*ctx.saved_tensors)
        length = inputs.u.shape[1]
        longest = longest_chunk(inputs.u.device)
        with torch.autocast(dy_BQHP.device.type, enabled=False):
            plan = plan_chunks(length, longest, inputs.A, inputs.D, last=ctx.last)
            chunks = _chunks(inputs, plan)
            _, mixing, carry = scan_chunks(chunks, plan)
            dy_HJQP = dy_BQHP.permute(2, 0, 1, 3).contiguous() if ctx.last else cut(dy_BQHP, plan)
            d = scan_chunks_backward(dy_HJQP, chunks, plan, mixing, carry)
        dC_JTN = F.pad(d.C, (0, 0, length - 1, 0)) if ctx.last else d.C
        return (
            None,
            joined(d.u, plan, length).contiguous(),
            joined(d.dt[..., None], plan, length)[..., 0].contiguous(),
            d.A,
            joined(d.B[None], plan, length)[:, :, 0].contiguous(),
            joined(dC_JTN[None], plan, length)[:, :, 0].contiguous(),
            d.D,
        )
