"""The whole SSD mixer on a CPU as one autograd node that works on a few rows at a time.

Thirty passes over tensors larger than the cache are thirty trips to memory; here a block of rows
takes them all before the next block starts. The forward keeps the projected tokens and the output,
and the backward computes the rest again.

Inside a chunk of tokens y_i = sum_j mixing_ij u_j, one lower triangular matrix a head (Dao & Gu
2024, section 6). The exponents of its decays are sums of dt A over the tokens after j up to i, one
product with a constant matrix of zeros and ones. They are never differences of running sums, so
they are never positive and lose nothing to cancellation, and no mask meets an infinity.

Shapes: B batch, R rows of a block, L tokens, V is L rounded up to whole chunks, D hidden, E inner,
X convolved channels (E + 2 N), W is X + H, Y is 2 N, H heads, P channels a head, N state, K kernel
width; J chunks (R rows, each of G chunks), T tokens of a chunk, Q tokens asked for (L or T, or 1:
the last); S and M are columns of the sums' matrices.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .linears import product_into

# Longest chunk: the state costs as much as 48 tokens' pairs.
LONGEST_CHUNK = 48
# Numbers in one tensor of inner width, for each thread: half a megabyte, so that the few that are
# alive at once stay in a core's cache. Measured: half as many are up to 15 % slower, twice as many
# are level.
_BLOCK_NUMBERS = 2**17
# Decays below exp(-60) count as 0: they are nothing beside a token's own exp(0) in any float type.
# Lower ones would soon be denormal numbers, which make exp and products a hundred times slower.
_LOWEST_EXPONENT = -60.0
_LOWEST_DECAY = math.exp(-59.99)
# As good as 0, and the gradient of dt can be had by dividing that of log dt by it.
_SMALLEST_STEP = 1e-20


class SSDParameters(NamedTuple):
    """Parameters of the mixer, as `mamba_ssm.Mamba2` names and lays them out.

    Attributes:
        in_proj: rows of the gate (E), of x, B and C (X), and of dt (H); S is their sum.
        conv_weight: depthwise, over x, B and C.
        conv_bias: bias of the convolution.
        dt_bias: bias of dt.
        A_log: logarithm of the decay rates.
        D: skip connection.
        norm_weight: of the RMSNorm after the gate.
        out_proj: output map.
    """

    in_proj: Tensor  # (S, D)
    conv_weight: Tensor  # (X, 1, K)
    conv_bias: Tensor  # (X,)
    dt_bias: Tensor  # (H,)
    A_log: Tensor  # (H,)
    D: Tensor  # (H,)
    norm_weight: Tensor  # (E,)
    out_proj: Tensor  # (D, E)


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
    """Tokens cut into chunks of equal length; dt is above `_SMALLEST_STEP`."""

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


class _Weights(NamedTuple):
    """The parameters, ready for use; the norm's weight is folded into the output map."""

    gate: Tensor  # (E, D)
    rest: Tensor  # (W, D)
    taps: Tensor  # (K, X)
    conv_bias: Tensor  # (X,)
    dt_bias: Tensor  # (H,)
    out: Tensor  # (D, E)
    plan: ChunkPlan


class _Kept(NamedTuple):
    """What the forward computes and the backward needs, of some rows or of all."""

    gate: Tensor  # (R, Q, E)
    rest: Tensor  # (R, L, W)
    scale: Tensor  # (R, Q, 1)

    def rows(self, rows: slice) -> "_Kept":
        return _Kept(*(tensor[rows] for tensor in self))


class _Block(NamedTuple):
    """What the forward leaves of a block of rows."""

    hidden: Tensor  # (R, L, D)
    out: Tensor  # (R, Q, D)
    kept: _Kept


class _Scanned(NamedTuple):
    """What a block of rows is after convolution and scan."""

    conv: Tensor  # (R, L, X)
    chunks: Chunks
    mixing: Mixing
    carry: Carry | None
    y: Tensor  # (R, Q, H, P)


def mix_in_row_blocks(
    hidden_BLD: Tensor, parameters: SSDParameters, eps: float, *, last: bool
) -> Tensor:
    """Return the mixed tokens (B, L, D), or with `last` the last one alone (B, 1, D)."""
    out_BQD: Tensor = _Mixer.apply(hidden_BLD.contiguous(), eps, last, *parameters)
    return out_BQD


def can_mix_in_row_blocks(hidden_BLD: Tensor, weight: Tensor) -> bool:
    """Return whether float32 or float64 is to be computed eagerly on a CPU."""
    return (
        hidden_BLD.device.type == "cpu"
        and hidden_BLD.dtype == weight.dtype
        and hidden_BLD.dtype in (torch.float32, torch.float64)
        and hidden_BLD.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_BLD: Tensor, eps: float, last: bool, *parameters: Tensor
    ) -> Tensor:
        w = _prepare(SSDParameters(*parameters), hidden_BLD.shape[1], last=last)
        out_BQD = torch.empty_like(hidden_BLD[:, -1:] if last else hidden_BLD)
        blocks = _row_blocks(hidden_BLD, w)
        keeps = any(ctx.needs_input_grad)
        kept = _allocate(hidden_BLD if keeps else hidden_BLD[blocks[0]], w)
        for rows in blocks:
            hidden_RLD, out_RQD = hidden_BLD[rows], out_BQD[rows]
            _forward(hidden_RLD, w, eps, kept.rows(rows if keeps else slice(len(out_RQD))), out_RQD)
        if keeps:
            ctx.save_for_backward(hidden_BLD, out_BQD, *kept, *parameters)
            ctx.last = last
        return out_BQD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BQD: Tensor) -> tuple[Tensor | None, ...]:
        hidden_BLD, out_BQD, gate, rest, scale, *parameters = ctx.saved_tensors
        kept, p = _Kept(gate, rest, scale), SSDParameters(*parameters)
        w = _prepare(p, hidden_BLD.shape[1], last=ctx.last)
        d_hidden_BLD = torch.empty_like(hidden_BLD)
        # Sums over the blocks, of the gradients of what `_prepare` made of the parameters.
        d = SSDParameters(*(torch.zeros_like(parameter) for parameter in p))
        for rows in _row_blocks(hidden_BLD, w):
            d_hidden_RLD = d_hidden_BLD[rows]
            block = _Block(hidden_BLD[rows], out_BQD[rows], kept.rows(rows))
            _backward(d_out_BQD[rows], block, w, d, d_hidden_RLD)
        d = d._replace(
            A_log=d.A_log * w.plan.A,
            norm_weight=(d.out_proj * p.out_proj).sum(0),
            out_proj=d.out_proj * p.norm_weight,
        )
        return d_hidden_BLD, None, None, *d


def _prepare(p: SSDParameters, length: int, *, last: bool) -> _Weights:
    inner = len(p.norm_weight)
    return _Weights(
        gate=p.in_proj[:inner],
        rest=p.in_proj[inner:],
        taps=p.conv_weight[:, 0].t().contiguous(),
        conv_bias=p.conv_bias,
        dt_bias=p.dt_bias,
        out=p.out_proj * p.norm_weight,
        plan=plan_chunks(length, LONGEST_CHUNK, -torch.exp(p.A_log), p.D, last=last),
    )


def _row_blocks(hidden_BLD: Tensor, w: _Weights) -> list[slice]:
    n_rows, length, _ = hidden_BLD.shape
    step = max(1, _BLOCK_NUMBERS * torch.get_num_threads() // (length * len(w.gate)))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _allocate(hidden_RLD: Tensor, w: _Weights) -> _Kept:
    n_rows, length, _ = hidden_RLD.shape
    n_asked = 1 if w.plan.last else length
    return _Kept(
        hidden_RLD.new_empty(n_rows, n_asked, len(w.gate)),
        hidden_RLD.new_empty(n_rows, length, len(w.rest)),
        hidden_RLD.new_empty(n_rows, n_asked, 1),
    )


def _forward(hidden_RLD: Tensor, w: _Weights, eps: float, kept: _Kept, out_RQD: Tensor) -> None:
    """Fill `kept` and `out_RQD`: norm(y * silu(gate)) through the output map."""
    _map(hidden_RLD, w.rest, kept.rest)
    _map(hidden_RLD[:, -1:] if w.plan.last else hidden_RLD, w.gate, kept.gate)
    y_RQHP = _scan(kept.rest, w).y
    gated_RQE = F.silu(kept.gate)
    gated_RQE.view(y_RQHP.shape).mul_(y_RQHP)
    norm_RQ1 = torch.linalg.vector_norm(gated_RQE, dim=-1, keepdim=True)
    mean_square_RQ1 = norm_RQ1.square_().div_(gated_RQE.shape[-1])
    torch.rsqrt(mean_square_RQ1.add_(eps), out=kept.scale)
    _map(gated_RQE, w.out, out_RQD).mul_(kept.scale)


def _scan(rest_RLW: Tensor, w: _Weights) -> _Scanned:
    """Convolve the block's x, B and C, and scan them."""
    n_rows, length, _ = rest_RLW.shape
    heads, inner, n_conv = len(w.dt_bias), len(w.gate), len(w.conv_bias)
    conv_RLX = rest_RLW.new_empty(n_rows, length, n_conv)
    _convolve(rest_RLW[..., :n_conv], w.taps, w.conv_bias, conv_RLX)
    whole = w.plan.n_chunks * len(w.plan.pair)
    u_HRVP = conv_RLX.new_empty(heads, n_rows, whole, inner // heads)
    conv_heads = conv_RLX[..., :inner].unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
    torch.ops.aten.silu.out(conv_heads, out=u_HRVP[:, :, :length])
    BC_RVY = F.silu(conv_RLX[..., inner:])
    dt_RVH = F.softplus(rest_RLW[..., n_conv:] + w.dt_bias).clamp_min_(_SMALLEST_STEP)
    if whole > length:
        # Whatever follows the last token changes nothing before it.
        u_HRVP[:, :, length:] = 0
        BC_RVY = F.pad(BC_RVY, (0, 0, 0, whole - length))
        dt_RVH = F.pad(dt_RVH, (0, 0, 0, whole - length), value=1.0)
    chunks = _cut(u_HRVP, BC_RVY, dt_RVH, w.plan)
    y_HJQP, mixing, carry = scan_chunks(chunks, w.plan)
    y_HRQP = y_HJQP.view(heads, n_rows, -1, inner // heads)[:, :, :length]
    return _Scanned(conv_RLX, chunks, mixing, carry, y_HRQP.permute(1, 2, 0, 3))


def _cut(u_HRVP: Tensor, BC_RVY: Tensor, dt_RVH: Tensor, plan: ChunkPlan) -> Chunks:
    size = len(plan.pair)
    B_JTN, C_JTN = BC_RVY.view(-1, size, BC_RVY.shape[-1]).chunk(2, -1)
    return Chunks(
        u_HRVP.view(len(u_HRVP), -1, size, u_HRVP.shape[-1]),
        B_JTN,
        C_JTN[:, -1:] if plan.last else C_JTN,
        dt_RVH.view(-1, size, dt_RVH.shape[-1]).permute(2, 0, 1).contiguous(),
    )


def _backward(
    d_out_RQD: Tensor, block: _Block, w: _Weights, d: SSDParameters, d_hidden_RLD: Tensor
) -> None:
    """Fill `d_hidden_RLD`, and add the block's share to the sums in `d`."""
    rest_RLW = block.kept.rest
    scanned = _scan(rest_RLW, w)
    dy_RQHP, d_gate_RQE = _gate_backward(d_out_RQD, block, scanned.y, w, d)
    dy_HJQP = _heads_first(dy_RQHP, scanned.chunks.u.shape[:3], w.plan)
    d_scan = scan_chunks_backward(dy_HJQP, scanned.chunks, w.plan, scanned.mixing, scanned.carry)
    d.A_log.add_(d_scan.A)
    d.D.add_(d_scan.D)
    d_rest_RLW = _conv_backward(d_scan, rest_RLW, scanned, w, d)
    inner = len(w.gate)
    hidden, d_rest, d_gate = (x.flatten(0, 1) for x in (block.hidden, d_rest_RLW, d_gate_RQE))
    d.in_proj[inner:].addmm_(d_rest.t(), hidden)
    d.in_proj[:inner].addmm_(d_gate.t(), block.hidden[:, -1] if w.plan.last else hidden)
    _map(d_rest_RLW, w.rest.t(), d_hidden_RLD)
    asked = d_hidden_RLD[:, -1] if w.plan.last else d_hidden_RLD.view(hidden.shape)
    asked.addmm_(d_gate, w.gate)


def _gate_backward(
    d_out_RQD: Tensor, block: _Block, y_RQHP: Tensor, w: _Weights, d: SSDParameters
) -> tuple[Tensor, Tensor]:
    """Return the gradients of y (R, Q, H, P) and of the gate (R, Q, E).

    With g = y * silu(gate) and s = (mean(g^2) + eps)^-1/2, out = s M g, so the gradient of g is
    s M^T d_out - g s^2 (d_out . out) / E.
    """
    gate_RQE, _, scale_RQ1 = block.kept
    pull_RQ1 = (d_out_RQD * block.out).sum(-1, keepdim=True)
    pull_RQ1.mul_(scale_RQ1.square()).div_(-gate_RQE.shape[-1])
    silu_RQHP = F.silu(gate_RQE).view(y_RQHP.shape)
    gated_RQE = (silu_RQHP * y_RQHP).flatten(2)
    scaled_RQD = d_out_RQD * scale_RQ1
    d.out_proj.addmm_(scaled_RQD.flatten(0, 1).t(), gated_RQE.flatten(0, 1))
    d_gated_RQE = _map(scaled_RQD, w.out.t(), torch.empty_like(gated_RQE))
    d_gated_RQHP = d_gated_RQE.addcmul_(pull_RQ1, gated_RQE).view(y_RQHP.shape)
    d_silu_RQE = torch.mul(d_gated_RQHP, y_RQHP, out=gated_RQE.view(y_RQHP.shape)).flatten(2)
    d_gate_RQE = torch.ops.aten.silu_backward(d_silu_RQE, gate_RQE)
    return d_gated_RQHP.mul_(silu_RQHP), d_gate_RQE


def _heads_first(dy_RQHP: Tensor, sizes: tuple[int, ...], plan: ChunkPlan) -> Tensor:
    """Return (H, J, Q, P), with zeros after the last token where it does not end a chunk."""
    heads, n_chunks, size = sizes
    n_rows, n_asked, _, width = dy_RQHP.shape
    whole = 1 if plan.last else n_chunks // n_rows * size
    dy_HRVP = dy_RQHP.new_empty(heads, n_rows, whole, width)
    dy_HRVP[:, :, :n_asked] = dy_RQHP.permute(2, 0, 1, 3)
    dy_HRVP[:, :, n_asked:] = 0
    return dy_HRVP.view(heads, n_chunks, -1, width)


def _conv_backward(
    d_scan: ChunkGradients, rest_RLW: Tensor, scanned: _Scanned, w: _Weights, d: SSDParameters
) -> Tensor:
    """Return the gradient of `rest_RLW`: through dt, and through SiLU and convolution."""
    d_rest_RLW = torch.empty_like(rest_RLW)
    n_rows, length, _ = rest_RLW.shape
    heads, inner, n_conv = len(w.dt_bias), len(w.gate), len(w.conv_bias)
    # The derivative of softplus is 1 - exp(-dt).
    d_dt_HJT = d_scan.dt.mul_(torch.expm1(-scanned.chunks.dt).neg_())
    d_dt_HRL = d_dt_HJT.view(heads, n_rows, -1)[..., :length]
    d.dt_bias.add_(d_dt_HRL.sum((1, 2)))
    d_rest_RLW[..., n_conv:] = d_dt_HRL.permute(1, 2, 0)

    conv_RLX, d_conv_RLX = scanned.conv, torch.empty_like(scanned.conv)
    du_heads = d_scan.u.view(heads, n_rows, -1, inner // heads)[:, :, :length]
    conv_heads, d_conv_heads = (
        x[..., :inner].unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
        for x in (conv_RLX, d_conv_RLX)
    )
    torch.ops.aten.silu_backward.grad_input(du_heads, conv_heads, grad_input=d_conv_heads)
    dC_JTN = d_scan.C
    if w.plan.last:
        dC_JTN = F.pad(dC_JTN, (0, 0, length - 1, 0))
    dBC_JTY = torch.cat([d_scan.B, dC_JTN], -1)
    dBC_RLY = dBC_JTY.view(n_rows, -1, dBC_JTY.shape[-1])[:, :length]
    conv_RLY, d_conv_RLY = conv_RLX[..., inner:], d_conv_RLX[..., inner:]
    torch.ops.aten.silu_backward.grad_input(dBC_RLY, conv_RLY, grad_input=d_conv_RLY)
    x_RLX, dx_RLX = rest_RLW[..., :n_conv], d_rest_RLW[..., :n_conv]
    d_taps_KX, d_bias_X = _convolve_backward(d_conv_RLX, x_RLX, w.taps, dx_RLX)
    d.conv_weight[:, 0].add_(d_taps_KX.t())
    d.conv_bias.add_(d_bias_X)
    return d_rest_RLW


def _map(x: Tensor, weight_OI: Tensor, out: Tensor) -> Tensor:
    """Write x times the transposed weight into `out`, and return it."""
    product_into(out.view(-1, len(weight_OI)), x.reshape(-1, x.shape[-1]), weight_OI)
    return out


def _convolve(x_BLX: Tensor, taps_KX: Tensor, bias_X: Tensor, out_BLX: Tensor) -> None:
    """Write the convolution into `out_BLX`; the last tap is the present token's."""
    width, length = len(taps_KX), x_BLX.shape[1]
    torch.addcmul(bias_X, x_BLX, taps_KX[-1], out=out_BLX)
    for back in range(1, min(width, length)):
        out_BLX[:, back:].addcmul_(x_BLX[:, : length - back], taps_KX[width - 1 - back])


def _convolve_backward(
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
