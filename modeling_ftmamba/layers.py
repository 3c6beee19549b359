"""Residual layers around the mixers.

Shapes: B batch, L tokens, D hidden.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .configuration_ftmamba import FTMambaTowerConfig
from .dropout import Dropout
from .linears import is_untouched
from .mixer_attention import AttentionMixer, FeedForward
from .mixer_mamba import MambaMixer
from .mixer_ssd import SSDMixer
from .mixer_state import MixerState, Part
from .scans import AutoScan, Norm, Scan

Mixer = MambaMixer | SSDMixer | AttentionMixer
# What builds the mixer of a layer, by the config's name of it.
MIXER_OF_NAME: dict[str, Callable[[FTMambaTowerConfig, Scan | AutoScan], Mixer]] = {
    "mamba": MambaMixer,
    "ssd": lambda config, _: SSDMixer(config),
    "attention": lambda config, _: AttentionMixer(config),
}


class FTMambaLayer(nn.Module):
    """One residual layer: a mixer, then for attention, or if asked for, a feed-forward."""

    def __init__(self, config: FTMambaTowerConfig, index: int, scan: Scan | AutoScan) -> None:
        super().__init__()
        feeds = config.mixer == "attention" or config.mixer_feed_forward
        build_mixer = MIXER_OF_NAME[config.mixer]
        self.mixer = build_mixer(config, scan)
        self.reverse_mixer = build_mixer(config, scan) if config.bidirectional else None
        self.feed_forward = FeedForward(config) if feeds else None
        size, eps = config.hidden_size, config.layer_norm_eps
        normalised = index > 0 or config.first_layer_norm
        self.mixer_norm = nn.LayerNorm(size, eps) if normalised else nn.Identity()
        self.norm_class = type(self.mixer_norm)
        self.feed_forward_norm = nn.LayerNorm(size, eps) if feeds else None
        self.norm_position = config.norm_position
        self.norm_before = config.norm_position == "pre"
        self.residual = config.mixer_residual
        self.dropout = Dropout(config.residual_dropout)

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the layer's tokens (B, L, D); the gaps are for a scan that decays with time."""
        if (fused_BLD := self._fused(hidden_BLD, gaps_BL, last=False)) is not None:
            return self._feed(fused_BLD)
        mixed_BLD = self._mix(self.normed(hidden_BLD), gaps_BL)
        return self.finish(hidden_BLD, mixed_BLD)

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last token (B, D), equal to `forward(...)[:, -1]`; not if bidirectional."""
        if (fused_BD := self._fused(hidden_BLD, gaps_BL, last=True)) is not None:
            return self._feed(fused_BD)
        normed_BLD = self.normed(hidden_BLD)
        if isinstance(self.mixer, AttentionMixer):
            return self.finish(hidden_BLD[:, -1], self.mixer.forward_last(normed_BLD))
        return self.finish(hidden_BLD[:, -1], self.mixer.forward_last(normed_BLD, gaps_BL))

    def advance(self, hidden: Tensor, state: MixerState, part: Part) -> tuple[Tensor, MixerState]:
        """Return more tokens, (B, T, D) or one (B, D), after those that left the state, and it."""
        assert not isinstance(self.mixer, AttentionMixer)
        if (carried := self._carried(hidden, state, part)) is not None:
            return self._feed(carried[0]), carried[1]
        mixed, state = self.mixer.advance(self.normed(hidden), state, part)
        return self.finish(hidden, mixed), state

    def normed(self, hidden: Tensor) -> Tensor:
        """Return what the mixer reads of tokens (..., D)."""
        normed: Tensor = self.mixer_norm(hidden) if self.norm_before else hidden
        return normed

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Return the layer's output for tokens (..., D) and what the mixer made of them."""
        return self._feed(self._joined(hidden if self.residual else None, mixed, self.mixer_norm))

    def _fused(
        self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None, *, last: bool
    ) -> Tensor | None:
        """Return mixer, norm and sum from one fused call, or None where it takes several."""
        mixer = self.mixer
        if not isinstance(mixer, MambaMixer) or not self._fuses_with_norm():
            return None
        rate = self.dropout.p if self.training else 0.0
        if (fused := mixer.fused(hidden_BLD, gaps_BL, rate)) is None:
            return None
        return fused(
            hidden_BLD,
            mixer.fused_parameters(),
            self._norm_weights(),
            residual=self.residual,
            last=last,
            reverse=False,
        )

    def _carried(
        self, hidden: Tensor, state: MixerState, part: Part
    ) -> tuple[Tensor, MixerState] | None:
        """Return mixer, norm and sum of `advance` from one fused call, or None."""
        mixer = self.mixer
        drops = self.training and self.dropout.p > 0
        if not isinstance(mixer, MambaMixer) or drops or not self._fuses_with_norm():
            return None
        if (carried := mixer.carried(hidden, part)) is None:
            return None
        tokens_BTD = hidden if hidden.ndim == 3 else hidden[:, None]
        out_BTD, conv, scan = carried(
            tokens_BTD, mixer.fused_parameters(), self._norm_weights(), *state,
            residual=self.residual,
        )  # fmt: skip
        return out_BTD.view_as(hidden), MixerState(conv, scan)

    def _fuses_with_norm(self) -> bool:
        before = self.norm_before and is_untouched(self.mixer_norm, self.norm_class)
        return before and self.reverse_mixer is None

    def _norm_weights(self) -> Norm | None:
        norm = self.mixer_norm
        return (norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else None

    def _mix(self, normed_BLD: Tensor, gaps_BL: Tensor | None) -> Tensor:
        if isinstance(self.mixer, AttentionMixer):
            return self.mixer(normed_BLD)
        mixed_BLD = self.mixer(normed_BLD, gaps_BL)
        if isinstance(self.reverse_mixer, MambaMixer):
            mixed_BLD = mixed_BLD + self.reverse_mixer.forward_reversed(normed_BLD)
        elif self.reverse_mixer is not None:
            mixed_BLD = mixed_BLD + self.reverse_mixer(normed_BLD.flip(1)).flip(1)
        return mixed_BLD

    def _feed(self, hidden: Tensor) -> Tensor:
        if self.feed_forward is None or self.feed_forward_norm is None:
            return hidden
        read = self.feed_forward_norm(hidden) if self.norm_before else hidden
        return self._joined(hidden, self.feed_forward(read), self.feed_forward_norm)

    def _joined(self, hidden: Tensor | None, added: Tensor, norm: nn.Module) -> Tensor:
        """Return hidden, where it is given, plus what was added, normalised as configured."""
        added = norm(added) if self.norm_position == "post" else added
        total = self.dropout(added) if hidden is None else self.dropout.sum_with(hidden, added)
        return norm(total) if self.norm_position == "sum" else total
