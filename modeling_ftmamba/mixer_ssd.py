"""The Mamba-2 mixer (Dao & Gu 2024, section 7.1) with the parameter names of mamba-ssm.

Shapes: B batch, L tokens, D hidden, E inner, X convolved channels (E + 2 N), H heads, P channels
a head, N state, Q tokens asked for (L, or 1: the last).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .causal_conv import causal_conv_silu
from .configuration_ftmamba import FTMambaTowerConfig
from .linears import is_untouched
from .mixer_state import (
    MixerState,
    Part,
    carry_conv,
    carry_conv_one,
    carry_scan,
    carry_scan_one,
)
from .scan_ssd import SSDInputs, ssd, ssd_last
from .ssd_row_blocks import SSDParameters, can_mix_in_row_blocks, mix_in_row_blocks


class GatedRMSNorm(nn.Module):
    """RMSNorm of y * silu(gate), over all channels."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Return (..., E) of y's type, computed in float32 at least."""
        wide = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(wide) * F.silu(gate.to(wide))
        shape = (y.shape[-1],)
        return F.rms_norm(gated, shape, self.weight.to(wide), self.eps).to(y.dtype)


class SSDMixer(nn.Module):
    """Mix tokens from left to right: linear, causal convolution, SSD scan, gated norm, linear.

    Weights move between this module, `mamba_ssm.Mamba2` (one group) and the `Mamba2Mixer` of
    Transformers unchanged. On a CPU the whole mixer is one autograd node.
    """

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        inner, state, heads = config.inner_size, config.state_size, config.n_ssd_heads
        self.n_heads = heads
        self.dt_range = (config.time_step_min, config.time_step_max, config.time_step_floor)
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
        heads = len(self.D)
        init.copy_(self.A_log, torch.empty(heads).uniform_(1, 16).log())
        init.ones_(self.D)
        init.ones_(self.norm.weight)
        if self.gap_weight is not None:
            init.zeros_(self.gap_weight)
        low, high, floor = self.dt_range
        dt_H = torch.empty(heads).uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
        # The inverse of softplus, so that softplus(bias) is dt.
        init.copy_(self.dt_bias, dt_H + torch.log(-torch.expm1(-dt_H)))

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the mixed tokens (B, L, D); see `steps` for the gaps."""
        return self._mix(hidden_BLD, gaps_BL, last=False)

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last mixed token (B, D), equal to `forward(...)[:, -1]`, for less work."""
        return self._mix(hidden_BLD, gaps_BL, last=True)[:, 0]

    def advance(self, hidden: Tensor, state: MixerState, part: Part) -> tuple[Tensor, MixerState]:
        """Mix more tokens, (B, T, D) or one (B, D), after those that left the state."""
        one = hidden.ndim == 2
        gate, xBC, dt = self.in_proj(hidden).split(self.splits, -1)
        xBC, conv = (
            carry_conv_one(xBC, self.conv1d, state.conv)
            if one
            else carry_conv(xBC, self.conv1d, state.conv, part.lengths)
        )
        u, B, C = xBC.split(self.xBC_splits, -1)
        width = u.shape[-1] // self.n_heads
        dt = self.steps(dt, part.gaps).repeat_interleave(width, -1)
        A_E1 = self.decay_rates().repeat_interleave(width)[:, None]
        inputs = u, dt, A_E1, B, C
        y, scan = (
            carry_scan_one(inputs, state.scan)
            if one
            else carry_scan(inputs, state.scan, part.lengths)
        )
        y = torch.addcmul(y, self.D.repeat_interleave(width), u)
        return self.out_proj(self.norm(y, gate)), MixerState(conv, scan)

    def steps(self, raw: Tensor, gaps: Tensor | None) -> Tensor:
        """Return dt (..., H), each head's longer or shorter by what the gap says.

        A head learns w of dt * exp(w * gap), so that a pause of the user is a long step.

        Args:
            raw: as `in_proj` returns it (..., H).
            gaps: log(1 + seconds) ahead of each token (...), or None for no gap at all.
        """
        dt = F.softplus(raw + self.dt_bias)
        if gaps is None or self.gap_weight is None:
            return dt
        return dt * torch.exp(gaps[..., None].to(dt.dtype) * self.gap_weight)

    def decay_rates(self) -> Tensor:
        """Return A (H,) = -exp(A_log), in float32 at least: a small error in A is compounded."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _mix(self, hidden_BLD: Tensor, gaps_BL: Tensor | None, *, last: bool) -> Tensor:
        decays = gaps_BL is not None and self.gap_weight is not None
        if (
            not decays
            and self._is_untouched()
            and can_mix_in_row_blocks(hidden_BLD, self.in_proj.weight)
        ):
            return mix_in_row_blocks(
                hidden_BLD, self._parameters_as_tuple(), self.norm.eps, last=last
            )
        gate_BLE, xBC_BLX, dt_BLH = self.in_proj(hidden_BLD).split(self.splits, -1)
        xBC_BLX = causal_conv_silu(xBC_BLX, self.conv1d.weight, self.conv1d.bias)
        u_BLE, B_BLN, C_BLN = xBC_BLX.split(self.xBC_splits, -1)
        u_BLHP = u_BLE.unflatten(-1, (self.n_heads, -1))
        dt_BLH = self.steps(dt_BLH, gaps_BL)
        inputs = SSDInputs(u_BLHP, dt_BLH, self.decay_rates(), B_BLN, C_BLN, self.D)
        y_BQHP, gate_BQE = (
            (ssd_last(inputs)[:, None], gate_BLE[:, -1:]) if last else (ssd(inputs), gate_BLE)
        )
        return self.out_proj(self.norm(y_BQHP.flatten(2), gate_BQE).to(hidden_BLD.dtype))

    def _is_untouched(self) -> bool:
        """Return whether no part is replaced or observed, so that the parameters say it all."""
        parts = (self.in_proj, self.conv1d, self.norm, self.out_proj)
        kinds = (nn.Linear, nn.Conv1d, GatedRMSNorm, nn.Linear)
        return all(map(is_untouched, parts, kinds))

    def _parameters_as_tuple(self) -> SSDParameters:
        assert self.conv1d.bias is not None
        return SSDParameters(
            self.in_proj.weight,
            self.conv1d.weight,
            self.conv1d.bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.norm.weight,
            self.out_proj.weight,
        )
