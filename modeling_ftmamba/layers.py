"""Residual layers around the mixers.

Shapes: B batch, L tokens, D hidden.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .configuration_ftmamba import FTMambaTowerConfig
from .linears import is_untouched
from .mixer_attention import AttentionMixer, FeedForward
from .mixer_mamba import MambaMixer
from .mixer_ssd import SSDMixer
from .scans import AutoScan, Norm, Scan

Mixer = MambaMixer | SSDMixer | AttentionMixer
# What builds the mixer of a layer, by the config's name of it.
MIXER_OF_NAME: dict[str, Callable[[FTMambaTowerConfig, Scan | AutoScan], Mixer]] = {
    "mamba": MambaMixer,
    "ssd": lambda config, _: SSDMixer(config),
    "attention": lambda config, _: AttentionMixer(config),
}


class FTMambaLayer(nn.Module):
    """One residual layer: a mixer, and for attention its feed-forward."""

    def __init__(self, config: FTMambaTowerConfig, index: int, scan: Scan | AutoScan) -> None:
        super().__init__()
        attention = config.mixer == "attention"
        build_mixer = MIXER_OF_NAME[config.mixer]
        self.mixer = build_mixer(config, scan)
        self.reverse_mixer = build_mixer(config, scan) if config.bidirectional else None
        self.feed_forward = FeedForward(config) if attention else None
        size, eps = config.hidden_size, config.layer_norm_eps
        normalised = index > 0 or config.first_layer_norm
        self.mixer_norm = nn.LayerNorm(size, eps) if normalised else nn.Identity()
        self.norm_class = type(self.mixer_norm)
        self.feed_forward_norm = nn.LayerNorm(size, eps) if attention else None
        self.norm_before = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the layer's tokens (B, L, D)."""
        if (fused := self._fused(hidden_BLD, last=False)) is not None:
            return fused
        mixed_BLD = self._mix(self.mixer_norm(hidden_BLD) if self.norm_before else hidden_BLD)
        return self._finish(hidden_BLD, mixed_BLD)

    def forward_last(self, hidden_BLD: Tensor) -> Tensor:
        """Return the last token (B, D), equal to `forward(...)[:, -1]`; not if bidirectional."""
        if (fused := self._fused(hidden_BLD, last=True)) is not None:
            return fused
        normed_BLD = self.mixer_norm(hidden_BLD) if self.norm_before else hidden_BLD
        return self._finish(hidden_BLD[:, -1], self.mixer.forward_last(normed_BLD))

    def _fused(self, hidden_BLD: Tensor, *, last: bool) -> Tensor | None:
        """Return the layer's output from one fused call, or None where it takes several."""
        mixer, norm = self.mixer, self.mixer_norm
        drops = self.training and self.dropout.p > 0
        if not isinstance(mixer, MambaMixer) or self.reverse_mixer is not None:
            return None
        if not self.norm_before or drops or not is_untouched(norm, self.norm_class):
            return None
        if (fused := mixer.fused(hidden_BLD)) is None:
            return None
        weights: Norm | None = None
        if isinstance(norm, nn.LayerNorm):
            weights = (norm.weight, norm.bias, norm.eps)
        return fused(
            hidden_BLD, mixer.fused_parameters(), weights, residual=True, last=last, reverse=False
        )

    def _mix(self, normed_BLD: Tensor) -> Tensor:
        mixed_BLD = self.mixer(normed_BLD)
        if isinstance(self.reverse_mixer, MambaMixer):
            mixed_BLD = mixed_BLD + self.reverse_mixer.forward_reversed(normed_BLD)
        elif self.reverse_mixer is not None:
            mixed_BLD = mixed_BLD + self.reverse_mixer(normed_BLD.flip(1)).flip(1)
        return mixed_BLD

    def _finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + self.dropout(mixed if self.norm_before else self.mixer_norm(mixed))
        if self.feed_forward is None or self.feed_forward_norm is None:
            return hidden
        if self.norm_before:
            return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.feed_forward_norm(self.feed_forward(hidden)))
