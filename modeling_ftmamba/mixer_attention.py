"""The FT-Transformer layer (Gorishniy et al. 2021, section 3.3): attention, then ReGLU.

Shapes: B batch, L tokens, T tokens that ask, D hidden, F feed-forward, H heads, W head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_ftmamba import FTMambaTowerConfig
from .dropout import Dropout
from .linears import apply_linear, apply_linear_in_chunks


class AttentionMixer(nn.Module):
    """Multi-head self-attention, through SDPA: over every token or, if causal, none later."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_attention_heads
        self.dropout = config.attention_dropout
        self.causal = config.causal_attention
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the mixed tokens (B, L, D)."""
        return self._attend(hidden_BLD, hidden_BLD, causal=self.causal)

    def forward_last(self, hidden_BLD: Tensor) -> Tensor:
        """Return the last mixed token (B, D): one query, all keys."""
        return self._attend(hidden_BLD[:, -1:], hidden_BLD, causal=False)[:, 0]

    def _attend(self, asking_BTD: Tensor, hidden_BLD: Tensor, *, causal: bool) -> Tensor:
        query_BTD = apply_linear(self.query, asking_BTD)
        key_BLD, value_BLD = apply_linear_in_chunks(self.key_value, hidden_BLD, 2)
        mixed_BHTW = F.scaled_dot_product_attention(
            self._heads(query_BTD),
            self._heads(key_BLD),
            self._heads(value_BLD),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return apply_linear(self.out_proj, mixed_BHTW.transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.view(*x_BLD.shape[:2], self.n_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with ReGLU (Shazeer 2020), ReLU or GELU between them."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        size = config.feed_forward_size
        self.kind = config.feed_forward
        self.up = nn.Linear(config.hidden_size, 2 * size if self.kind == "reglu" else size)
        self.dropout = Dropout(config.feed_forward_dropout)
        self.down = nn.Linear(size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return a tensor of the input's shape (..., D)."""
        if self.kind == "reglu":
            value, gate = apply_linear_in_chunks(self.up, hidden, 2)
            up = self.dropout(value * torch.relu(gate))
        elif self.kind == "relu":
            up = self.dropout(torch.relu(apply_linear(self.up, hidden)))
        else:
            up = self.dropout.after_gelu(apply_linear(self.up, hidden))
        return apply_linear(self.down, up)
