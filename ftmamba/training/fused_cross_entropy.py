"""Cross-entropy of inner products with every item, without ever holding all of the logits.

Shapes: M positions, C positions of a chunk, I items, D embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ftmamba.kernels.linears import product_into
from ftmamba.kernels.softmax import (
    Exponentials,
    Listed,
    SoftmaxOfProducts,
    exponentiate,
    has_softmax_of_products,
    softmax_of_products,
)
from ftmamba.training.negatives import SeenItems

LOGIT_BYTES_AT_ONCE = 2**23
"""What a chunk writes is still in the cache when it is read."""

LEAST_CHUNK = 1024
"""Positions; with fewer, adding up the gradients of all items costs more than what is added."""

CHUNK_OF_BLOCKS = 8192
"""Positions, where the kernel cuts them into blocks itself."""


def fused_linear_cross_entropy(  # noqa: PLR0913 - the loss has six, two say how it is computed
    hidden_MD: Tensor,
    targets_M: Tensor,
    items_ID: Tensor,
    *,
    log_weights_I: Tensor | None = None,
    label_smoothing: float = 0.0,
    weights_M: Tensor | None = None,
    seen: SeenItems | None = None,
    repeat_bias: Tensor | None = None,
    products_in: torch.dtype | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute `F.cross_entropy(hidden @ items.T, targets)` in memory for one chunk.

    It is the loss over every item at every position of Mamba4Rec (Liu et al., arXiv 2403.03900).
    The logits of a chunk of positions turn into their own gradient while they are there, as in
    Liger Kernel (Hsu et al., arXiv 2410.10989), so that backward only scales what forward found
    and no logit is computed twice.

    Half precision is computed in float32, also under autocast; float64 stays. `products_in` is for
    processors that multiply bfloat16 numbers many times faster: logits and their gradients are
    rounded to it, sums over items and over positions are not.

    Args:
        hidden_MD: embeddings of users at positions, already divided by the temperature.
        targets_M: int64, the item of the next interaction, a row of `items_ID`.
        items_ID: embeddings of all items.
        log_weights_I: log of how many items each stands for, added to its logits, without gradient;
            None where these are all items.
        label_smoothing: this share of a position's label is spread over all items.
        weights_M: weight of each position's loss, without gradient; None weighs all alike.
        seen: items that each position has seen; None treats all items alike.
        repeat_bias: (1,), added to their logits; None makes them no negatives there.
        products_in: type of the matrix products; by default that of the inputs.
        chunk: positions at once; by default as many as are fast.

    Returns:
        Mean over the positions of weight times loss, in nats; 0 if there is no position.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if label_smoothing and log_weights_I is not None:
        raise ValueError("label_smoothing is over all items, and log_weights_I over some")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk}")
    if repeat_bias is not None and seen is None:
        raise ValueError("repeat_bias needs `seen`, the items that each position has seen")
    inputs = [one for one in (hidden_MD, items_ID, repeat_bias) if one is not None]
    with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.autocast(hidden_MD.device.type, enabled=False):
        loss: Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            _exact(hidden_MD),
            _exact(items_ID),
            targets_M,
            None if log_weights_I is None else _exact(log_weights_I),
            None if repeat_bias is None else _exact(repeat_bias),
            weights_M,
            label_smoothing,
            seen,
            products_in,
            chunk,
            with_gradient,
        )
    return loss


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd's
        ctx: Any,
        hidden_MD: Tensor,
        items_ID: Tensor,
        targets_M: Tensor,
        log_weights_I: Tensor | None,
        repeat_bias: Tensor | None,
        weights_M: Tensor | None,
        label_smoothing: float,
        seen: SeenItems | None,
        products_in: torch.dtype | None,
        chunk: int | None,
        with_gradient: bool,
    ) -> Tensor:
        share_M = hidden_MD.new_full((len(hidden_MD),), 1 / max(1, len(hidden_MD)))
        if weights_M is not None:
            share_M *= weights_M
        apart = None if seen is None else _Apart(seen, repeat_bias)
        work = _Work(items_ID, log_weights_I, label_smoothing, apart, products_in, with_gradient)
        hidden_MD = hidden_MD.detach()
        chunk = chunk or work.default_chunk(hidden_MD)
        parts = [slice(start, start + chunk) for start in range(0, len(hidden_MD), chunk)]
        chunks = [work.add(hidden_MD[p], targets_M[p], share_M[p], p) for p in parts]
        losses_M = torch.cat([losses for losses, _ in chunks]) if chunks else share_M
        if with_gradient:
            d_hidden_MD = torch.cat([d for _, d in chunks]) if chunks else hidden_MD
            d_repeat_bias = items_ID.new_zeros(1) if apart is None else apart.d_repeat_bias
            # In the order of the items: what follows is many times slower on transposed numbers.
            d_items_ID = work.d_items_DI.t().contiguous()
            ctx.save_for_backward(d_hidden_MD, d_items_ID, d_repeat_bias)
        ctx.has_repeat_bias = repeat_bias is not None
        return losses_M @ share_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_MD, d_items_ID, d_bias = (tensor * d_loss for tensor in ctx.saved_tensors)
        d_repeat_bias = d_bias if ctx.has_repeat_bias else None
        return d_hidden_MD, d_items_ID, None, None, d_repeat_bias, *[None] * 6


class _Apart:
    """What a softmax does with seen items: they are left out, or get a bias.

    Args:
        seen: these items.
        repeat_bias: (1,), added to their logits; None leaves them out.
    """

    def __init__(self, seen: SeenItems, repeat_bias: Tensor | None) -> None:
        self._seen = seen
        self._bias = None if repeat_bias is None else float(repeat_bias)
        kind = torch.float32 if repeat_bias is None else repeat_bias.dtype
        self.d_repeat_bias = torch.zeros(1, dtype=kind, device=seen.items.device)

    def listed(self, positions: slice, targets_C: Tensor) -> Listed:
        """Return a chunk's seen items for `exponentiate`."""
        if self._bias is None:
            return self._seen.left_out(positions, targets_C)
        return self._seen.biased(positions, self._bias)

    def add_labels(
        self, listed: Listed, found: Exponentials, targets_C: Tensor, share_C: Tensor,
        smoothing: float, n: int,
    ) -> Tensor | float:  # fmt: skip
        """Add a chunk's gradient of the bias: probabilities of listed items less their labels.

        Returns:
            What the bias adds to the logits (C,) that the labels of n items weigh.
        """
        if self._bias is None or found.listed is None:
            return 0.0
        label_C = self._label(listed, targets_C, smoothing, n)
        self.d_repeat_bias += (share_C * (found.listed / found.sum - label_C)).sum()
        return self._bias * label_C

    def _label(self, listed: Listed, targets_C: Tensor, smoothing: float, n: int) -> Tensor:
        """Return the share (C,) of each label that is on seen items."""
        columns_CT, counts_CT = listed.columns()
        is_target_C = ((columns_CT == targets_C[:, None]) & counts_CT).any(1)
        label_C = (1 - smoothing) * is_target_C.to(self.d_repeat_bias)
        return (
            label_C + smoothing / n * counts_CT.sum(1).to(self.d_repeat_bias)
            if smoothing
            else label_C
        )


class _Work:
    """Goes through chunks of positions and adds up the gradients of what they share."""

    def __init__(
        self,
        items_ID: Tensor,
        log_weights_I: Tensor | None,
        label_smoothing: float,
        apart: _Apart | None,
        products_in: torch.dtype | None,
        with_gradient: bool,
    ) -> None:
        self.items_ID, self.log_weights_I = items_ID.detach(), log_weights_I
        self.factor_ID = self.items_ID.to(products_in or items_ID.dtype)
        self.smoothing, self.with_gradient = label_smoothing, with_gradient
        self.apart = apart
        self.mean_item_D = self.items_ID.mean(0)
        # Items last: this product is twice as fast as its transpose.
        self.d_items_DI = torch.zeros_like(self.items_ID.t(), memory_format=torch.contiguous_format)

    def default_chunk(self, hidden_MD: Tensor) -> int:
        """Return as many positions at once as are fast."""
        if self._is_compiled(hidden_MD):
            return CHUNK_OF_BLOCKS
        bytes_a_row = max(1, len(self.items_ID)) * self.factor_ID.dtype.itemsize
        return max(LEAST_CHUNK, LOGIT_BYTES_AT_ONCE // bytes_a_row)

    def _is_compiled(self, hidden: Tensor) -> bool:
        return self.log_weights_I is None and has_softmax_of_products(hidden, self.factor_ID)

    def add(
        self, hidden_CD: Tensor, targets_C: Tensor, share_C: Tensor, positions: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (C,) of a chunk and the gradient (C, D) of its outputs."""
        apart, n_items = self.apart, len(self.items_ID)
        listed = None if apart is None else apart.listed(positions, targets_C)
        if self._is_compiled(hidden_CD):
            d_items_DI = self.d_items_DI if self.with_gradient else None
            found, target_C, d_hidden_CD = softmax_of_products(
                hidden_CD, self.factor_ID, targets_C, share_C, listed, d_items_DI
            )
        else:
            found, target_C, d_hidden_CD = self._softmax(hidden_CD, targets_C, share_C, listed)
        label_logit_C = (1 - self.smoothing) * target_C
        if self.smoothing:
            label_logit_C += self.smoothing * (hidden_CD @ self.mean_item_D)
        if apart is not None and listed is not None:
            label_logit_C += apart.add_labels(
                listed, found, targets_C, share_C, self.smoothing, n_items
            )
        losses_C = found.sum.log() + found.largest - label_logit_C
        if d_hidden_CD is None:
            return losses_C, hidden_CD
        return losses_C, self._less_labels(d_hidden_CD, hidden_CD, targets_C, share_C)

    def _softmax(
        self, hidden_CD: Tensor, targets_C: Tensor, share_C: Tensor, listed: Listed | None
    ) -> SoftmaxOfProducts:
        """Do as `softmax_of_products`, with the weights of items.

        Probabilities are exponentials whose row is divided by its sum, which is done to the narrow
        factor of each product.
        """
        logits_CI = self.factor_ID.new_empty(len(hidden_CD), len(self.items_ID))
        _product_into(logits_CI, hidden_CD.to(logits_CI.dtype), self.factor_ID)
        if self.log_weights_I is not None:
            logits_CI += self.log_weights_I
        target_C = logits_CI.gather(1, targets_C[:, None])[:, 0].to(hidden_CD.dtype)
        found = exponentiate(logits_CI, listed)
        if not self.with_gradient:
            return SoftmaxOfProducts(found, target_C, None)
        scale_C = share_C / found.sum
        d_factor_CD = logits_CI.new_empty(hidden_CD.shape)
        _product_into(d_factor_CD, logits_CI, self.factor_ID.t())
        d_hidden_CD = d_factor_CD.to(hidden_CD.dtype).mul_(scale_C[:, None])
        scaled_DC = (hidden_CD * scale_C[:, None]).to(logits_CI.dtype).t()
        if scaled_DC.dtype == self.d_items_DI.dtype:
            self.d_items_DI.addmm_(scaled_DC, logits_CI)
        else:
            self.d_items_DI += scaled_DC @ logits_CI
        return SoftmaxOfProducts(found, target_C, d_hidden_CD)

    def _less_labels(
        self, d_hidden_CD: Tensor, hidden_CD: Tensor, targets_C: Tensor, share_C: Tensor
    ) -> Tensor:
        """Take the labels out of a chunk's gradients, and return that of its outputs.

        The gradient of a logit is its probability less its label; labels are products with one
        item, or with the mean of all.
        """
        label_C = share_C * (1 - self.smoothing)
        d_hidden_CD -= label_C[:, None] * self.items_ID[targets_C]
        self.d_items_DI.t().index_add_(0, targets_C, label_C[:, None] * hidden_CD, alpha=-1)
        if self.smoothing:
            spread_C = share_C * self.smoothing
            d_hidden_CD -= spread_C[:, None] * self.mean_item_D
            self.d_items_DI -= (spread_C @ hidden_CD)[:, None] / len(self.items_ID)
        return d_hidden_CD


def _product_into(out_CO: Tensor, x_CK: Tensor, weight_OK: Tensor) -> None:
    if x_CK.device.type == "cpu":
        product_into(out_CO, x_CK, weight_OK)
    else:
        torch.mm(x_CK, weight_OK.t(), out=out_CO)
