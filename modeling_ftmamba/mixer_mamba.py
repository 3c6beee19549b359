"""The Mamba-1 mixer (Gu & Dao 2023, section 3.4) with the parameter names of mamba-ssm.

Shapes: B batch, L tokens, D hidden, E inner channels, N state, R rank of dt, K
kernel width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .causal_conv import causal_conv_silu
from .configuration_ftmamba import FTMambaTowerConfig
from .linears import is_untouched
from .mamba_parameters import MambaParameters
from .mixer_state import (
    MixerState,
    Part,
    carry_conv,
    carry_conv_one,
    carry_scan,
    carry_scan_one,
)
from .scans import WIDEST_FUSED_CONV, AutoScan, CarriedLayerFunction, LayerFunction, Scan


class MambaMixer(nn.Module):
    """Mix tokens from left to right: linear, causal convolution, selective scan, gate, linear.

    Weights move between this module and `mamba_ssm.Mamba` unchanged.
    """

    def __init__(self, config: FTMambaTowerConfig, scan: Scan | AutoScan) -> None:
        super().__init__()
        inner, state, rank = config.inner_size, config.state_size, config.dt_rank
        self.scan = scan
        self.dt_range = (config.time_step_min, config.time_step_max, config.time_step_floor)
        self.splits = [rank, state, state]
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.conv_kernel, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.gap_weight = nn.Parameter(torch.empty(inner)) if config.decays_with_time else None
        self.initializer_range = config.initializer_range
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def reset_parameters(self) -> None:
        """Initialise as mamba-ssm does: A = -(1..N), D = 1, dt log-uniform in its range."""
        inner, state = self.A_log.shape
        init.copy_(self.A_log, torch.arange(1, state + 1).log().expand(inner, state))
        init.ones_(self.D)
        if self.gap_weight is not None:
            init.zeros_(self.gap_weight)
        if self.initializer_range:
            init.normal_(self.dt_proj.weight, std=self.initializer_range)
        else:
            bound = self.dt_proj.in_features**-0.5
            init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high, floor = self.dt_range
        dt_E = torch.empty(inner).uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
        # The inverse of softplus, so that softplus(bias) is dt.
        # NOTE[DIFF]: Mamba4Rec sets every bias of a linear map to 0, this one too, which makes all
        # steps as large as 0.7 and forgets what a channel saw a few tokens ago.
        init.copy_(self.dt_proj.bias, dt_E + torch.log(-torch.expm1(-dt_E)))

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the mixed tokens (B, L, D); see `steps` for the gaps."""
        if (fused := self.fused(hidden_BLD, gaps_BL)) is not None:
            return fused(
                hidden_BLD, self.fused_parameters(), None, residual=False, last=False, reverse=False
            )
        x_BLE, gate_BLE = self.in_proj(hidden_BLD).chunk(2, -1)
        u_BLE = self.convolve(x_BLE)
        dt_BLR, B_BLN, C_BLN = self.x_proj(u_BLE).split(self.splits, -1)
        dt_BLE = self.steps(dt_BLR, gaps_BL)
        scan = self.scan.for_tensor(u_BLE)
        y_BLE = scan.full(u_BLE, dt_BLE, self.decay_rates(), B_BLN, C_BLN)
        y_BLE = y_BLE + self.D * u_BLE
        return self.out_proj((y_BLE * F.silu(gate_BLE)).to(hidden_BLD.dtype))

    def forward_reversed(self, hidden_BLD: Tensor) -> Tensor:
        """Return what `forward` makes of the tokens read from the last to the first."""
        if (fused := self.fused(hidden_BLD)) is not None:
            return fused(
                hidden_BLD, self.fused_parameters(), None, residual=False, last=False, reverse=True
            )
        return self.forward(hidden_BLD.flip(1)).flip(1)

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last mixed token (B, D), equal to `forward(...)[:, -1]`, for less work."""
        if (fused := self.fused(hidden_BLD, gaps_BL)) is not None:
            return fused(
                hidden_BLD, self.fused_parameters(), None, residual=False, last=True, reverse=False
            )
        inner, rank_state = self.D.shape[0], self.splits[0] + self.splits[1]
        x_BLE = F.linear(hidden_BLD, self.in_proj.weight[:inner])
        gate_BE = F.linear(hidden_BLD[:, -1], self.in_proj.weight[inner:])
        u_BLE = self.convolve(x_BLE)
        dt_BLR, B_BLN = F.linear(u_BLE, self.x_proj.weight[:rank_state]).split(self.splits[:2], -1)
        C_BN = F.linear(u_BLE[:, -1], self.x_proj.weight[rank_state:])
        dt_BLE = self.steps(dt_BLR, gaps_BL)
        scan = self.scan.for_tensor(u_BLE)
        y_BE = scan.last(u_BLE, dt_BLE, self.decay_rates(), B_BLN, C_BN)
        y_BE = y_BE + self.D * u_BLE[:, -1]
        return self.out_proj((y_BE * F.silu(gate_BE)).to(hidden_BLD.dtype))

    def advance(self, hidden: Tensor, state: MixerState, part: Part) -> tuple[Tensor, MixerState]:
        """Mix more tokens, (B, T, D) or one (B, D), after those that left the state."""
        one = hidden.ndim == 2
        x, gate = self.in_proj(hidden).chunk(2, -1)
        u, conv = (
            carry_conv_one(x, self.conv1d, state.conv)
            if one
            else carry_conv(x, self.conv1d, state.conv, part.lengths)
        )
        low, B, C = self.x_proj(u).split(self.splits, -1)
        inputs = u, self.steps(low, part.gaps), self.decay_rates(), B, C
        y, scan = (
            carry_scan_one(inputs, state.scan)
            if one
            else carry_scan(inputs, state.scan, part.lengths)
        )
        y = torch.addcmul(y, self.D, u) * F.silu(gate)
        return self.out_proj(y), MixerState(conv, scan)

    def steps(self, low: Tensor, gaps: Tensor | None) -> Tensor:
        """Return dt (..., E), each channel's longer or shorter by what the gap says.

        A channel learns w of dt * exp(w * gap), so that a pause of the user is a long step.

        Args:
            low: the steps in low rank (..., R).
            gaps: log(1 + seconds) ahead of each token (...), or None for no gap at all.
        """
        dt = F.softplus(self.dt_proj(low))
        if gaps is None or self.gap_weight is None:
            return dt
        return dt * torch.exp(gaps[..., None].to(dt.dtype) * self.gap_weight)

    def fused(
        self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None, dropout: float = 0.0
    ) -> LayerFunction | None:
        """Return the scan's fused layer, where it has one and nothing here has been replaced.

        A part of another class, or with a hook, is somebody's adapter or observer, and must run.
        """
        scan = self.scan.for_tensor(hidden_BLD)
        layer = scan.layer
        if dropout:
            make = None if torch.compiler.is_compiling() else scan.dropping_layer
            layer = None if make is None else make(dropout)
        return layer if layer is not None and self._can_fuse(gaps_BL) else None

    def carried(self, hidden: Tensor, part: Part) -> CarriedLayerFunction | None:
        """Return the scan's fused layer over tokens that follow others, on the terms of `fused`."""
        layer = self.scan.for_tensor(hidden).carried_layer
        if layer is None or part.lengths is not None or torch.is_grad_enabled():
            return None
        return layer if self._can_fuse(part.gaps) else None

    def _can_fuse(self, gaps: Tensor | None) -> bool:
        if gaps is not None and self.gap_weight is not None:
            return False
        if self.conv1d.kernel_size[0] > WIDEST_FUSED_CONV:
            return False
        linears = (self.in_proj, self.x_proj, self.dt_proj, self.out_proj)
        untouched = all(is_untouched(linear, nn.Linear) for linear in linears)
        return untouched and is_untouched(self.conv1d, nn.Conv1d)

    def fused_parameters(self) -> MambaParameters:
        """Return the parameters as a fused layer takes them."""
        return MambaParameters(
            self.in_proj.weight,
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
            self.out_proj.weight,
        )

    def decay_rates(self) -> Tensor:
        """Return A (E, N) = -exp(A_log), in float32 at least: a small error in A is compounded."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def convolve(self, x_BLE: Tensor) -> Tensor:
        """Convolve each channel over the tokens up to the present one, then apply SiLU."""
        return causal_conv_silu(x_BLE, self.conv1d.weight, self.conv1d.bias)
