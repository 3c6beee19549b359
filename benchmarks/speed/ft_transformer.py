"""The rival: an FT-Transformer tower (Gorishniy et al. 2021) over given tokens, as fast as found.

Pre-norm layers with ReGLU of width 4 D / 3, one product for query, key and value, and a last layer
that is computed at the last token only. Which variant is the fastest depends on the machine and
the shape, so all are timed and the fastest of each cell is the one to beat.

Shapes: B batch, L tokens, T queries, D hidden, F feed-forward, H heads, W head width, M rows,
O outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class FTTransformer(nn.Module):
    """From tokens (B, L, D) to the last token's normalised output (B, D)."""

    def __init__(
        self,
        size: int,
        *,
        n_layers: int,
        n_heads: int,
        linear: type[nn.Linear] = nn.Linear,
        attention: Attention = F.scaled_dot_product_attention,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(size, n_heads, linear, attention) for _ in range(n_layers - 1)
        )
        self.last = TransformerLayer(size, n_heads, linear, attention)
        self.norm = nn.LayerNorm(size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the embedding (B, D)."""
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD)
        embedding_BD: Tensor = self.norm(self.last.forward_last(hidden_BLD))
        return embedding_BD


class FusedFTTransformer(nn.Module):
    """The same with torch's `TransformerEncoderLayer`, whose inference is one fused operator.

    NOTE[DIFF]: ReLU of width 2 D in place of ReGLU of width 4 D / 3: the same parameters.
    """

    def __init__(self, size: int, *, n_layers: int, n_heads: int) -> None:
        super().__init__()
        layer = partial(nn.TransformerEncoderLayer, size, n_heads, 2 * size, 0.0)
        self.layers = nn.ModuleList(
            layer(batch_first=True, norm_first=True) for _ in range(n_layers - 1)
        )
        self.last = TransformerLayer(size, n_heads, nn.Linear, F.scaled_dot_product_attention)
        self.norm = nn.LayerNorm(size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the embedding (B, D)."""
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD)
        embedding_BD: Tensor = self.norm(self.last.forward_last(hidden_BLD))
        return embedding_BD


class TransformerLayer(nn.Module):
    """Pre-norm attention, then a pre-norm gated feed-forward."""

    def __init__(
        self, size: int, n_heads: int, linear: type[nn.Linear], attention: Attention
    ) -> None:
        super().__init__()
        inner = int(4 * size / 3)
        self.size, self.n_heads, self.attention = size, n_heads, attention
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query_key_value, self.out = linear(size, 3 * size), linear(size, size)
        self.up, self.down = linear(size, 2 * inner), linear(inner, size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return all tokens (B, L, D)."""
        query_key_value = self.query_key_value(self.attention_norm(hidden_BLD))
        return self._finish(hidden_BLD, *query_key_value.chunk(3, -1))

    def forward_last(self, hidden_BLD: Tensor) -> Tensor:
        """Return the last token (B, D): one query, all keys."""
        normed_BLD = self.attention_norm(hidden_BLD)
        weight, bias, size = self.query_key_value.weight, self.query_key_value.bias, self.size
        query_B1D = F.linear(normed_BLD[:, -1:], weight[:size], bias[:size])
        key_BLD, value_BLD = F.linear(normed_BLD, weight[size:], bias[size:]).chunk(2, -1)
        return self._finish(hidden_BLD[:, -1:], query_B1D, key_BLD, value_BLD)[:, 0]

    def _finish(
        self, hidden_BTD: Tensor, query_BTD: Tensor, key_BLD: Tensor, value_BLD: Tensor
    ) -> Tensor:
        mixed_BHTW = self.attention(*map(self._heads, (query_BTD, key_BLD, value_BLD)))
        hidden_BTD = hidden_BTD + self.out(mixed_BHTW.transpose(1, 2).flatten(2))
        value_BTF, gate_BTF = self.up(self.feed_forward_norm(hidden_BTD)).chunk(2, -1)
        hidden_BTD = hidden_BTD + self.down(value_BTF * torch.relu(gate_BTF))
        return hidden_BTD

    def _heads(self, x_BLD: Tensor) -> Tensor:
        batch, length, size = x_BLD.shape
        return x_BLD.view(batch, length, self.n_heads, size // self.n_heads).transpose(1, 2)


def attention_by_products(query_BHTW: Tensor, key_BHLW: Tensor, value_BHLW: Tensor) -> Tensor:
    """Attend by two batched products; for some short records faster than SDPA on a CPU."""
    query_BHTW = query_BHTW * query_BHTW.shape[-1] ** -0.5
    mixed: Tensor = torch.softmax(query_BHTW @ key_BHLW.transpose(-1, -2), -1) @ value_BHLW
    return mixed


class OneDNNLinear(nn.Linear):
    """A linear map through oneDNN in float32; on some CPUs more than twice as fast as `mm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b (..., O)."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return F.linear(x, self.weight, self.bias)
        product: Tensor = _OneDNNProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class _OneDNNProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OD: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OD)
        product_MO = onednn_linear(x.flatten(0, -2), weight_OD, bias_O)
        return product_MO.view(*x.shape[:-1], len(weight_OD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight_OD = ctx.saved_tensors
        dy_MO, x_MD = dy.flatten(0, -2), x.flatten(0, -2)
        dx_MD = onednn_linear(dy_MO, weight_OD.t(), None)
        # For the weight's gradient plain `mm` is as fast: oneDNN would copy both factors.
        return dx_MD.view_as(x), torch.mm(dy_MO.t(), x_MD), dy_MO.sum(0)


def onednn_linear(x_MD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x W^T + b (N, O) by oneDNN's kernel."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - torch has no other name
        x_MD, weight_OD, bias_O, "none", [], ""
    )
    return product
