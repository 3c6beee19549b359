"""Residual layers around the mixers.

Shapes: B batch, L tokens, D hidden.
"""

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ftmamba import FTMambaTowerConfig
from .mixer_attention import AttentionMixer, FeedForward
from .mixer_mamba import MambaMixer
from .scans import Scan


class FTMambaLayer(GradientCheckpointingLayer):
    """One residual layer: a mixer, and for attention its feed-forward."""

    def __init__(self, config: FTMambaTowerConfig, index: int, scan: Scan) -> None:
        super().__init__()
        attention = config.mixer == "attention"
        self.mixer = AttentionMixer(config) if attention else MambaMixer(config, scan)
        self.reverse_mixer = MambaMixer(config, scan) if config.bidirectional else None
        self.feed_forward = FeedForward(config) if attention else None
        size, eps = config.hidden_size, config.layer_norm_eps
        normalised = index > 0 or config.first_layer_norm
        self.mixer_norm = nn.LayerNorm(size, eps) if normalised else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(size, eps) if attention else None
        self.norm_before = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the layer's tokens (B, L, D)."""
        mixed_BLD = self._mix(self.mixer_norm(hidden_BLD) if self.norm_before else hidden_BLD)
        return self._finish(hidden_BLD, mixed_BLD)

    def forward_last(self, hidden_BLD: Tensor) -> Tensor:
        """Return the last token (B, D), equal to `forward(...)[:, -1]`; not if bidirectional."""
        normed_BLD = self.mixer_norm(hidden_BLD) if self.norm_before else hidden_BLD
        return self._finish(hidden_BLD[:, -1], self.mixer.forward_last(normed_BLD))

    def _mix(self, normed_BLD: Tensor) -> Tensor:
        mixed_BLD = self.mixer(normed_BLD)
        if self.reverse_mixer is not None:
            mixed_BLD = mixed_BLD + self.reverse_mixer(normed_BLD.flip(1)).flip(1)
        return mixed_BLD

    def _finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + self.dropout(mixed if self.norm_before else self.mixer_norm(mixed))
        if self.feed_forward is None or self.feed_forward_norm is None:
            return hidden
        if self.norm_before:
            return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.feed_forward_norm(self.feed_forward(hidden)))
