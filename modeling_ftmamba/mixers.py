"""What mixes tokens: the scans in plain torch, the mixers around them, and the feed-forward.

`selective_scan_reference` is the definition. Every other form of the scan equals it, values and
gradients, and keeps its state in float32 at least.

Shapes: B batch, L tokens, D hidden, E inner channels, N numbers of state a channel, R rank of dt,
X convolved channels, J tokens that the convolution keeps (its kernel's width less one), O window
(J + L), H heads, P channels a head, G chunks of T tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_ftmamba import FTMambaTowerConfig

Scan = TypeVar("Scan", bound=Callable[..., Any])
# Numbers of a scan's states that are computed at a time: a few megabytes, to stay in the cache.
_NUMBERS_AT_A_TIME = 2**20
# Tokens of a chunk of the SSD scan: longer ones cost more pairs, shorter ones more states.
_CHUNK = 48
# Decays below exp(-60) are nothing beside a token's own exp(0); lower ones would soon be denormal
# numbers, which make exp and products a hundred times slower.
_LOWEST_EXPONENT = -60.0


class MixerState(NamedTuple):
    """What a mixer keeps of the tokens behind it: exact, in however many parts they were read."""

    conv: Tensor  # the newest inputs of the convolution (B, X, J), oldest first
    scan: Tensor  # state of the scan (B, E, N)


class Part(NamedTuple):
    """What belongs to the tokens of one part, beside the tokens."""

    lengths: Tensor | None = None  # tokens of each row (B,); None means all
    gaps: Tensor | None = None  # log(1 + seconds) ahead of each token (B, L), or None


def _in_wide_types(scan: Scan) -> Scan:
    """Let a scan ignore autocast, whose products would be in 16 bits."""

    @functools.wraps(scan)
    def run(u: Tensor, *inputs: Tensor | None) -> Any:
        with torch.autocast(u.device.type, enabled=False):
            return scan(u, *inputs)

    return cast(Scan, run)


@_in_wide_types
def selective_scan_reference(
    u_BLE: Tensor,
    dt_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = C_t h_t, as the definition reads.

    Gu & Dao 2023, equations 1 and 2; Algorithm 2. The skip connection D u and the gate belong to
    the mixer. A step is not negative; one of 0 leaves the state alone. Returns y (B, L, E) of u's
    type, and the state (B, E, N) after the last token, from zeros on where none is given.
    """
    u, dt, A, B, C, state_BEN = _widened(u_BLE, dt_BLE, A_EN, B_BLN, C_BLN, state_BEN)
    outputs = [u[:, :0]]
    for u_BE, dt_BE, B_BN, C_BN in zip(*(x.unbind(1) for x in (u, dt, B, C)), strict=True):
        decay_BEN = torch.exp(dt_BE[:, :, None] * A)
        state_BEN = decay_BEN * state_BEN + (dt_BE * u_BE)[:, :, None] * B_BN[:, None, :]
        outputs.append(torch.einsum("ben,bn->be", state_BEN, C_BN)[:, None])
    return torch.cat(outputs, 1).to(u_BLE.dtype), state_BEN


@_in_wide_types
def selective_scan(
    u_BLE: Tensor,
    dt_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan_reference`, decays and outputs of many tokens at once.

    On a GPU it is the kernel of the Hub or of mamba_ssm, where Transformers finds one.
    """
    if u_BLE.is_cuda and state_BEN is None and u_BLE.dtype is not torch.float64 and u_BLE.numel():
        return _scan_by_kernel(u_BLE, dt_BLE, A_EN, B_BLN, C_BLN)
    u, dt, A, B, C, state_BEN = _widened(u_BLE, dt_BLE, A_EN, B_BLN, C_BLN, state_BEN)
    size = max(16, _NUMBERS_AT_A_TIME // max(1, state_BEN.numel()))
    outputs = [u[:, :0]]
    for parts in zip(*(x.split(size, 1) for x in (dt, dt * u, B, C)), strict=True):
        dt_LBE, dtu_LBE, B_LBN, C_LBN = (x.transpose(0, 1) for x in parts)
        decay_LBEN = torch.exp(dt_LBE[..., None] * A)
        added_LBEN = dtu_LBE[..., None] * B_LBN[:, :, None]
        states = [added_LBEN[:0]]
        for decay_BEN, added_BEN in zip(decay_LBEN.unbind(), added_LBEN.unbind(), strict=True):
            state_BEN = torch.addcmul(added_BEN, decay_BEN, state_BEN)
            states.append(state_BEN[None])
        outputs.append((torch.cat(states) @ C_LBN[..., None])[..., 0].transpose(0, 1))
    return torch.cat(outputs, 1).to(u_BLE.dtype), state_BEN


@_in_wide_types
def ssd(
    u_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan with one decay a head by matrix products over chunks (Dao & Gu 2024, section 6).

    It equals `selective_scan_reference` with each head's dt and A repeated for its channels.
    Returns y (B, L, H, P) of u's type, and the state (B, E, N) after the last token.
    """
    rows, length, heads, width = u_BLHP.shape
    u, dt, A, B, C, start = _widened(u_BLHP, dt_BLH, A_H, B_BLN, C_BLN, state_BEN)
    start_BHPN = start.view(rows, heads, width, B.shape[-1])
    if not length:
        return u_BLHP, start
    n_chunks = -(-length // _CHUNK)
    padding = -length % n_chunks
    # Chunks of equal length; a token of padding has a step of 0.
    u, dt, B, C = (
        F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding)).unflatten(1, (n_chunks, -1))
        for x in (u, dt, B, C)
    )
    step_BGHT = (dt * A).transpose(2, 3)
    # At (i, j) the sum of the steps after j up to i. Never the difference of two running sums,
    # which loses the small one.
    later_TT = torch.ones(step_BGHT.shape[-1:] * 2, device=u.device, dtype=torch.bool).tril(-1)
    steps_BGHTT = step_BGHT[..., None].expand(*step_BGHT.shape, later_TT.shape[0])
    sums_BGHTT = steps_BGHTT.masked_fill(~later_TT, 0).cumsum(-2)
    decay_BGHTT = _decay(sums_BGHTT).tril()
    dtu_BGTHP = dt[..., None] * u
    mixing_BGHTT = decay_BGHTT * (C @ B.mT)[:, :, None]
    y = torch.einsum("bghij,bgjhp->bgihp", mixing_BGHTT, dtu_BGTHP)
    # What each chunk adds to the state at its end, then the state ahead of each chunk.
    added = torch.einsum("bghj,bgjhp,bgjn->bghpn", decay_BGHTT[..., -1, :], dtu_BGTHP, B)
    kept_BGHT = _decay(step_BGHT.cumsum(-1))
    states = [start_BHPN]
    for kept_BH, added_BHPN in zip(kept_BGHT[..., -1].unbind(1), added.unbind(1), strict=True):
        states.append(kept_BH[..., None, None] * states[-1] + added_BHPN)
    if n_chunks > 1 or state_BEN is not None:
        before = torch.stack(states[:-1], 1)
        y = y + torch.einsum("bgin,bghi,bghpn->bgihp", C, kept_BGHT, before)
    return y.flatten(1, 2)[:, :length].to(u_BLHP.dtype), states[-1].flatten(1, 2)


def _widened(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state_BEN: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return all in float32 at least, and zeros for no state."""
    wide = torch.promote_types(u.dtype, torch.float32)
    if state_BEN is None:
        state_BEN = u.new_zeros(len(u), u.shape[2:].numel(), B.shape[-1])
    u, dt, A, B, C, state_BEN = (x.to(wide) for x in (u, dt, A, B, C, state_BEN))
    return u, dt, A, B, C, state_BEN


def _decay(exponent: Tensor) -> Tensor:
    return exponent.clamp(min=_LOWEST_EXPONENT).exp()


def _scan_by_kernel(
    u_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> tuple[Tensor, Tensor]:
    wide = functools.reduce(torch.promote_types, (x.dtype for x in (u_BLE, dt_BLE, B_BLN, C_BLN)))
    u, dt, B, C = (x.to(wide).mT.contiguous() for x in (u_BLE, dt_BLE, B_BLN, C_BLN))
    y_BEL, state_BEN = _scan_function()(u, dt, A_EN.float(), B, C, return_last_state=True)
    return y_BEL.mT.to(u_BLE.dtype), state_BEN


@functools.cache
def _scan_function() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return mamba_ssm's `selective_scan_fn` as Transformers finds it, or plain torch behind it."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **_: Any) -> Any:
        nothing = A.new_zeros(len(u), *A.shape)
        y_BLE, state_BEN = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, nothing)
        return y_BLE.mT, state_BEN

    try:
        from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback
    except ImportError:
        return scan
    found = use_kernel_func_from_hub_with_fallback("selective_scan_fn", "mamba_ssm")(scan)
    return cast(Callable[..., tuple[Tensor, Tensor]], found)


def causal_conv_silu(
    x_BLX: Tensor,
    conv1d: nn.Conv1d,
    kept_BXJ: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel over the tokens up to the present one, then apply SiLU.

    `kept_BXJ` are the inputs ahead of the first token, None for zeros. Returns the outputs
    (B, L, X), and each row's newest inputs (B, X, J), to go on from.
    """
    n_kept = conv1d.kernel_size[0] - 1
    x_BXL = x_BLX.transpose(1, 2)
    if kept_BXJ is None:
        window_BXO = F.pad(x_BXL, (n_kept, 0))
    else:
        window_BXO = torch.cat([kept_BXJ.to(x_BXL.dtype), x_BXL], 2)
    y_BLX = F.silu(conv1d(window_BXO)).transpose(1, 2).contiguous()
    if lengths_B is None:
        return y_BLX, window_BXO[..., x_BXL.shape[2] :]
    newest_BJ = lengths_B[:, None] + torch.arange(n_kept, device=lengths_B.device)
    newest_BXJ = newest_BJ[:, None].expand(-1, window_BXO.shape[1], -1)
    return y_BLX, window_BXO.gather(2, newest_BXJ)


def time_steps(
    raw: Tensor, gap_weight: Tensor | None, gaps_BL: Tensor | None, lengths_B: Tensor | None
) -> Tensor:
    """Return dt = softplus(raw), longer or shorter by the gaps (B, L, E or heads).

    A channel (`ssd`: head) learns w of dt * exp(w * gap), so that a pause of the user is a long
    step. A token beyond its row's end has a step of 0, which leaves the state alone.
    """
    dt = F.softplus(raw)
    if gaps_BL is not None and gap_weight is not None:
        dt = dt * torch.exp(gaps_BL[..., None].to(dt.dtype) * gap_weight)
    if lengths_B is None:
        return dt
    own_BL = torch.arange(dt.shape[1], device=dt.device) < lengths_B[:, None]
    return dt * own_BL[..., None]


def decay_rates(A_log: Tensor) -> Tensor:
    """Return A = -exp(A_log), in float32 at least: a small error in A is compounded."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))


PLAIN_SCANS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "sequential": selective_scan, "reference": selective_scan_reference,
}  # fmt: skip


def _initial_steps(config: FTMambaTowerConfig, size: int) -> Tensor:
    """Draw dt log-uniform in its range and return the inverse of softplus of it."""
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = torch.empty(size).uniform_(low, high).exp().clamp(min=config.time_step_floor)
    return dt + torch.log(-torch.expm1(-dt))


class ScanMixer(nn.Module):
    """Mix tokens from left to right: linear, causal convolution, a scan, a gate, linear.

    The parameters are named as in mamba-ssm, whose weights fit unchanged.
    """

    config: FTMambaTowerConfig
    conv1d: nn.Conv1d
    A_log: nn.Parameter
    D: nn.Parameter
    gap_weight: nn.Parameter | None
    # The gate, what is scanned (u, dt, B and C), and what the convolution keeps, of tokens.
    inputs: Callable[..., tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], Tensor]]
    scan: Callable[..., tuple[Tensor, Tensor]]  # see `selective_scan_reference`
    output: Callable[[Tensor, Tensor, Tensor], Tensor]  # mixed tokens of y, u and the gate

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the mixed tokens (B, L, D); see `time_steps` for the gaps."""
        return self.advance(hidden_BLD, None, Part(None, gaps_BL))[0]

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last mixed token (B, D)."""
        return self.forward(hidden_BLD, gaps_BL)[:, -1]

    def advance(
        self, hidden_BLD: Tensor, state: MixerState | None, part: Part
    ) -> tuple[Tensor, MixerState]:
        """Mix more tokens (B, L, D) after those that left the state; return them and the state."""
        kept_BXJ, before_BEN = (None, None) if state is None else state
        gate_BLE, (u, dt, B, C), conv_BXJ = self.inputs(hidden_BLD, kept_BXJ, part)
        y, after_BEN = self.scan(u, dt, decay_rates(self.A_log), B, C, before_BEN)
        return self.output(y, u, gate_BLE), MixerState(conv_BXJ, after_BEN)


class MambaMixer(ScanMixer):
    """The Mamba-1 mixer (Gu & Dao 2023, section 3.4), `mamba_ssm.Mamba`."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        inner, state, rank = config.inner_size, config.state_size, config.dt_rank
        self.config = config
        self.plain_scan = "sequential"
        self.splits = [rank, state, state]
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.conv_kernel, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.gap_weight = nn.Parameter(torch.empty(inner)) if config.decays_with_time else None
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def reset_parameters(self) -> None:
        """Initialise as mamba-ssm does: A = -(1..N), D = 1, dt log-uniform in its range."""
        inner, state = self.A_log.shape
        init.copy_(self.A_log, torch.arange(1, state + 1).log().expand(inner, state))
        init.ones_(self.D)
        if self.gap_weight is not None:
            init.zeros_(self.gap_weight)
        if self.config.initializer_range:
            init.normal_(self.dt_proj.weight, std=self.config.initializer_range)
        else:
            bound = self.dt_proj.in_features**-0.5
            init.uniform_(self.dt_proj.weight, -bound, bound)
        # NOTE[DIFF]: Mamba4Rec sets every bias of a linear map to 0, this one too, which makes all
        # steps as large as 0.7 and forgets what a channel saw a few tokens ago.
        init.copy_(self.dt_proj.bias, _initial_steps(self.config, inner))

    def inputs(
        self, hidden_BLD: Tensor, kept_BXJ: Tensor | None, part: Part
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        x_BLE, gate_BLE = self.in_proj(hidden_BLD).chunk(2, -1)
        u_BLE, conv_BXJ = causal_conv_silu(x_BLE, self.conv1d, kept_BXJ, part.lengths)
        low_BLR, B_BLN, C_BLN = self.x_proj(u_BLE).split(self.splits, -1)
        dt_BLE = time_steps(self.dt_proj(low_BLR), self.gap_weight, part.gaps, part.lengths)
        return gate_BLE, (u_BLE, dt_BLE, B_BLN, C_BLN), conv_BXJ

    def scan(self, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        return PLAIN_SCANS[self.plain_scan](*inputs)

    def scan_name(self) -> str:
        """Return the name of the scan in use."""
        return self.plain_scan

    def output(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(((y + self.D * u) * F.silu(gate)).to(gate.dtype))


class GatedRMSNorm(nn.Module):
    """RMSNorm of y * silu(gate), over all channels, computed in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Return (..., E) of y's type."""
        wide = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(wide) * F.silu(gate.to(wide))
        return F.rms_norm(gated, y.shape[-1:], self.weight.to(wide), self.eps).to(y.dtype)


class SSDMixer(ScanMixer):
    """The Mamba-2 mixer (Dao & Gu 2024, section 7.1), `mamba_ssm.Mamba2` with one group."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        inner, state, heads = config.inner_size, config.state_size, config.n_ssd_heads
        self.config = config
        self.n_heads = heads
        self.splits = [inner, inner + 2 * state, heads]
        self.xBC_splits = [inner, state, state]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.splits), bias=False)
        convolved = sum(self.xBC_splits)
        self.conv1d = nn.Conv1d(convolved, convolved, config.conv_kernel, groups=convolved)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.gap_weight = nn.Parameter(torch.empty(heads)) if config.decays_with_time else None
        self.norm = GatedRMSNorm(inner, config.layer_norm_eps)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def reset_parameters(self) -> None:
        """Initialise as mamba-ssm does: -A uniform in 1..16, D = 1, dt log-uniform in its range."""
        init.copy_(self.A_log, torch.empty(self.n_heads).uniform_(1, 16).log())
        init.ones_(self.D)
        init.ones_(self.norm.weight)
        if self.gap_weight is not None:
            init.zeros_(self.gap_weight)
        init.copy_(self.dt_bias, _initial_steps(self.config, self.n_heads))

    def inputs(
        self, hidden_BLD: Tensor, kept_BXJ: Tensor | None, part: Part
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        gate_BLE, xBC_BLX, raw_BLH = self.in_proj(hidden_BLD).split(self.splits, -1)
        xBC_BLX, conv_BXJ = causal_conv_silu(xBC_BLX, self.conv1d, kept_BXJ, part.lengths)
        u_BLE, B_BLN, C_BLN = xBC_BLX.split(self.xBC_splits, -1)
        dt_BLH = time_steps(raw_BLH + self.dt_bias, self.gap_weight, part.gaps, part.lengths)
        return gate_BLE, (u_BLE.unflatten(-1, (self.n_heads, -1)), dt_BLH, B_BLN, C_BLN), conv_BXJ

    def scan(self, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        return ssd(*inputs)  # type: ignore[arg-type]

    def output(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.norm((y + self.D[:, None] * u).flatten(-2), gate).to(gate.dtype))


class AttentionMixer(nn.Module):
    """Multi-head self-attention, through SDPA: over every token or, if causal, none later.

    The FT-Transformer's (Gorishniy et al. 2021, section 3.3); it keeps no state.
    """

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_attention_heads
        self.dropout = config.attention_dropout
        self.causal = config.causal_attention
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the mixed tokens (B, L, D); gaps are not read."""
        query_BHLP, key_BHLP, value_BHLP = (
            x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for x in (self.query(hidden_BLD), *self.key_value(hidden_BLD).chunk(2, -1))
        )
        rate = self.dropout if self.training else 0.0
        mixed_BHLP = F.scaled_dot_product_attention(
            query_BHLP, key_BHLP, value_BHLP, dropout_p=rate, is_causal=self.causal
        )
        return self.out_proj(mixed_BHLP.transpose(1, 2).flatten(2))

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last mixed token (B, D)."""
        return self.forward(hidden_BLD, gaps_BL)[:, -1]


class FeedForward(nn.Module):
    """Two linear maps with ReGLU (Shazeer 2020), ReLU or GELU between them."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        size = config.feed_forward_size
        self.kind = config.feed_forward
        self.up = nn.Linear(config.hidden_size, 2 * size if self.kind == "reglu" else size)
        self.dropout = nn.Dropout(config.feed_forward_dropout)
        self.down = nn.Linear(size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return a tensor of the input's shape (..., D)."""
        up = self.up(hidden)
        if self.kind == "reglu":
            value, gate = up.chunk(2, -1)
            up = value * torch.relu(gate)
        else:
            up = torch.relu(up) if self.kind == "relu" else F.gelu(up)
        return self.down(self.dropout(up))
