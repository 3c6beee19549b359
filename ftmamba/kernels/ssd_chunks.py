"""The SSD scan of chunks of tokens as matrix products, with its gradient written by hand.

Inside a chunk y_i = sum_j mixing_ij u_j, one lower triangular matrix a head (Dao & Gu 2024, section
6). The exponents of its decays are sums of dt A over the tokens after j up to i; all of them are
one product with a constant matrix of zeros and ones. They are never differences of running sums,
so they are never positive and lose nothing to cancellation, and no mask meets an infinity.

Shapes: J chunks (R rows, each of G chunks), T tokens of a chunk, Q tokens that are asked for (T,
or 1: the last), H heads, P channels a head, N state; S and M are columns of the sums' matrices.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Decays below exp(-60) count as 0: they are nothing beside a token's own exp(0) in any float type.
# Lower ones would soon be denormal numbers, which make exp and products a hundred times slower.
_LOWEST_EXPONENT = -60.0
_LOWEST_DECAY = math.exp(-59.99)
# As good as 0, and the gradient of dt can be had by dividing that of log dt by it.
SMALLEST_STEP = 1e-20


class ChunkPlan(NamedTuple):
    """What all chunks share.

    Attributes:
        A: negative decay rates.
        D: skip connection.
        pair: column (i, j) sums the tokens after j up to i; M is T * T.
        end: columns sum the tokens up to each one, then those after each one; S is 2 T.
        n_chunks: G.
        last: whether only the last token is asked for; then G is 1 and the matrices are empty.
    """

    A: Tensor  # (H,)
    D: Tensor  # (H,)
    pair: Tensor  # (T, M)
    end: Tensor  # (T, S)
    n_chunks: int
    last: bool


class Chunks(NamedTuple):
    """Tokens cut into chunks of equal length; dt is above `SMALLEST_STEP`."""

    u: Tensor  # (H, J, T, P)
    B: Tensor  # (J, T, N)
    C: Tensor  # (J, Q, N)
    dt: Tensor  # (H, J, T)


class Mixing(NamedTuple):
    """What the tokens of one chunk are to each other.

    Attributes:
        decay: what is left at token i of what token j added, times dt_j.
        score: C_i . B_j, zero where j is after i.
        total: their product, with D on the diagonal.
    """

    decay: Tensor  # (H, J, Q, T)
    score: Tensor  # (J, Q, T)
    total: Tensor  # (H, J, Q, T)


class Carry(NamedTuple):
    """What chunks hand on.

    Attributes:
        state: state before each chunk.
        read: C_i times the decay from the chunk's start to token i.
        write: B_j dt_j times the decay from token j to the chunk's end.
        start: the decay in `read`.
        end: what multiplies B_j in `write`.
    """

    state: Tensor  # (H, J, N, P)
    read: Tensor  # (H, J, T, N)
    write: Tensor  # (H, J, T, N)
    start: Tensor  # (H, J, T)
    end: Tensor  # (H, J, T)


class ChunkGradients(NamedTuple):
    """Gradients of `Chunks`, of A and of D."""

    u: Tensor  # (H, J, T, P)
    B: Tensor  # (J, T, N)
    C: Tensor  # (J, Q, N)
    dt: Tensor  # (H, J, T)
    A: Tensor  # (H,)
    D: Tensor  # (H,)


class _Partial(NamedTuple):
    """Gradients along one path: `step` is of dt A, `log_dt` of the logarithm of dt."""

    u: Tensor  # (H, J, T, P)
    B: Tensor  # (J, T, N)
    C: Tensor  # (J, Q, N)
    step: Tensor  # (H, J, T)
    log_dt: Tensor  # (H, J, T)


def plan_chunks(length: int, longest: int, A_H: Tensor, D_H: Tensor, *, last: bool) -> ChunkPlan:
    """Plan the fewest chunks of equal length that are no longer than `longest`."""
    if last:
        no_columns = A_H.new_empty(length, 0)
        return ChunkPlan(A_H, D_H, no_columns, no_columns, 1, last)
    n_chunks = -(-length // longest)
    token_T = torch.arange(-(-length // n_chunks), device=A_H.device)
    up_to_TT, after_TT = token_T[:, None] <= token_T, token_T[:, None] > token_T
    pair_TM = (up_to_TT[:, :, None] & after_TT[:, None, :]).flatten(1)
    end_TS = torch.cat([up_to_TT, after_TT], 1)
    return ChunkPlan(A_H, D_H, pair_TM.to(A_H.dtype), end_TS.to(A_H.dtype), n_chunks, last)


def scan_chunks(chunks: Chunks, plan: ChunkPlan) -> tuple[Tensor, Mixing, Carry | None]:
    """Return y_HJQP, and what the gradient needs."""
    mixing = _mix(chunks, plan)
    y_HJQP = _products(mixing.total, chunks.u)
    if plan.n_chunks == 1:
        return y_HJQP, mixing, None
    carry = _carry(chunks, plan)
    _add_products(y_HJQP, carry.read, carry.state)
    return y_HJQP, mixing, carry


def scan_chunks_backward(
    dy_HJQP: Tensor, chunks: Chunks, plan: ChunkPlan, mixing: Mixing, carry: Carry | None
) -> ChunkGradients:
    """Return the gradients of `scan_chunks`."""
    d, dD_H = _mix_backward(dy_HJQP, chunks, plan, mixing)
    if carry is not None:
        _add_carry_backward(dy_HJQP, chunks, plan, carry, d)
    dA_H = (d.step * chunks.dt).sum((1, 2))
    d_dt_HJT = d.log_dt.div_(chunks.dt).addcmul_(d.step, plan.A[:, None, None])
    return ChunkGradients(d.u, d.B, d.C, d_dt_HJT, dA_H, dD_H)


def _mix(chunks: Chunks, plan: ChunkPlan) -> Mixing:
    step_HJT = chunks.dt * plan.A[:, None, None]
    exponent_HJQT = _sums_after(step_HJT) if plan.last else _pair_sums(step_HJT, plan)
    decay_HJQT = _exp_in_place(exponent_HJQT).mul_(chunks.dt[:, :, None])
    score_JQT = torch.bmm(chunks.C, chunks.B.transpose(1, 2))
    if not plan.last:
        score_JQT.tril_()
    total_HJQT = decay_HJQT * score_JQT
    _own(total_HJQT).add_(plan.D[:, None, None])
    return Mixing(decay_HJQT, score_JQT, total_HJQT)


def _mix_backward(
    dy_HJQP: Tensor, chunks: Chunks, plan: ChunkPlan, mixing: Mixing
) -> tuple[_Partial, Tensor]:
    du_HJTP = _products(mixing.total.transpose(2, 3), dy_HJQP)
    d_total_HJQT = _products(dy_HJQP, chunks.u.transpose(2, 3))
    dD_H = _own(d_total_HJQT).sum((1, 2))
    d_score_JQT = d_total_HJQT.mul_(mixing.decay).sum(0)
    if not plan.last:
        d_score_JQT.tril_()
    d_exponent_HJQT = d_total_HJQT.mul_(mixing.score)
    d_sums = _sums_after_backward if plan.last else _pair_sums_backward
    partial = _Partial(
        du_HJTP,
        torch.bmm(d_score_JQT.transpose(1, 2), chunks.C),
        torch.bmm(d_score_JQT, chunks.B),
        d_sums(d_exponent_HJQT, plan),
        d_exponent_HJQT.sum(2),
    )
    return partial, dD_H


def _carry(chunks: Chunks, plan: ChunkPlan) -> Carry:
    step_HJT = chunks.dt * plan.A[:, None, None]
    sums_HJS = (step_HJT.flatten(0, 1) @ plan.end).unflatten(0, step_HJT.shape[:2])
    start_HJT, end_HJT = _exp_in_place(sums_HJS).chunk(2, -1)
    end_HJT = end_HJT * chunks.dt
    read_HJTN = chunks.C * start_HJT[..., None]
    write_HJTN = chunks.B * end_HJT[..., None]
    after_HJNP = _products(write_HJTN.transpose(2, 3), chunks.u)
    kept_GHR11 = _by_chunk(start_HJT[..., -1:, None], plan)
    after_GHRNP = _by_chunk(after_HJNP, plan)
    for g in range(1, plan.n_chunks):
        after_GHRNP[g].addcmul_(kept_GHR11[g], after_GHRNP[g - 1])
    state_HJNP = torch.zeros_like(after_HJNP)
    _by_chunk(state_HJNP, plan)[1:] = after_GHRNP[:-1]
    return Carry(state_HJNP, read_HJTN, write_HJTN, start_HJT, end_HJT)


def _add_carry_backward(
    dy_HJTP: Tensor, chunks: Chunks, plan: ChunkPlan, carry: Carry, d: _Partial
) -> None:
    """Add the gradients that pass through the state to those in `d`."""
    d_read_HJTN = _products(dy_HJTP, carry.state.transpose(2, 3))
    # Of each chunk's first state: through its own outputs, then through all later chunks'.
    adjoint_HJNP = _products(carry.read.transpose(2, 3), dy_HJTP)
    kept_HJ = carry.start[..., -1]
    kept_GHR11 = _by_chunk(kept_HJ[..., None, None], plan)
    adjoint_GHRNP = _by_chunk(adjoint_HJNP, plan)
    for g in range(plan.n_chunks - 2, -1, -1):
        adjoint_GHRNP[g].addcmul_(kept_GHR11[g], adjoint_GHRNP[g + 1])
    d_after_HJNP = torch.zeros_like(adjoint_HJNP)
    _by_chunk(d_after_HJNP, plan)[:-1] = adjoint_GHRNP[1:]
    _add_products(d.u, carry.write, d_after_HJNP)
    d_write_HJTN = _products(chunks.u, d_after_HJNP.transpose(2, 3))
    d.C.add_((d_read_HJTN * carry.start[..., None]).sum(0))
    d.B.add_((d_write_HJTN * carry.end[..., None]).sum(0))
    d_start_HJT = d_read_HJTN.mul_(carry.read).sum(-1)
    d_end_HJT = d_write_HJTN.mul_(carry.write).sum(-1)
    d_kept_HJ = (d_after_HJNP * carry.state).sum((2, 3))
    d_start_HJT[..., -1].addcmul_(d_kept_HJ, kept_HJ)
    d.log_dt.add_(d_end_HJT)
    d.step.add_(torch.cat([d_start_HJT, d_end_HJT], -1) @ plan.end.t())


def _exp_in_place(exponent: Tensor) -> Tensor:
    decay = exponent.clamp_min_(_LOWEST_EXPONENT).exp_()
    return F.threshold(decay, _LOWEST_DECAY, 0.0, inplace=True)


def _by_chunk(x: Tensor, plan: ChunkPlan) -> Tensor:
    """Return a view (G, H, R, ...) of (H, J, ...)."""
    return x.unflatten(1, (-1, plan.n_chunks)).movedim(2, 0)


def _own(total_HJQT: Tensor) -> Tensor:
    """Return a view (H, J, Q): what each asked token has of its own input."""
    n_asked = total_HJQT.shape[2]
    return total_HJQT[..., -n_asked:].diagonal(dim1=-2, dim2=-1)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right for matrices (H, J, ...), in one flat batch."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))


def _pair_sums(step_HJT: Tensor, plan: ChunkPlan) -> Tensor:
    """Return (H, J, T, T): at (i, j) the sum of the steps after j up to i; 0 where j >= i."""
    sums = step_HJT.flatten(0, 1) @ plan.pair
    return sums.view(*step_HJT.shape, step_HJT.shape[2])


def _pair_sums_backward(d_HJTT: Tensor, plan: ChunkPlan) -> Tensor:
    return (d_HJTT.view(-1, plan.pair.shape[1]) @ plan.pair.t()).view(d_HJTT.shape[:3])


def _sums_after(step_HJT: Tensor) -> Tensor:
    """Return (H, J, 1, T): the sum of the steps after each token."""
    sums = step_HJT[..., 1:].flip(-1).cumsum(-1).flip(-1)
    return F.pad(sums, (0, 1))[:, :, None]


def _sums_after_backward(d_HJ1T: Tensor, _: ChunkPlan) -> Tensor:
    return F.pad(d_HJ1T[:, :, 0, :-1].cumsum(-1), (1, 0))
