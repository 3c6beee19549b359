"""The mean of a loss over many positions, in memory for a chunk of them.

Shapes: M positions, C positions of a chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_in_chunks(
    losses_of: Callable[..., Tensor],
    rows: Sequence[Tensor],
    shared: Sequence[Tensor],
    *,
    chunk: int,
    weights_M: Tensor | None = None,
) -> Tensor:
    """Compute the mean of `losses_of(*rows, *shared)`, which is (M,), a chunk at a time.

    Forward takes each chunk's gradients at once and forgets what led to them, so memory is that of
    one chunk and nothing is computed twice.

    Args:
        losses_of: from a chunk of every tensor of `rows`, then all of `shared`, to losses (C,);
            a position's loss must not depend on the other positions of its chunk.
        rows: tensors with a row (M, ...) a position.
        shared: tensors that every position reads.
        chunk: positions at once.
        weights_M: weight of each position's loss, without gradient; None weighs all alike.

    Returns:
        Mean over the positions of weight times loss; 0 if there is no position.
    """
    with_gradient = torch.is_grad_enabled()
    mean: Tensor = _InChunks.apply(  # type: ignore[no-untyped-call]
        losses_of, chunk, weights_M, with_gradient, len(rows), *rows, *shared
    )
    return mean


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        losses_of: Callable[..., Tensor],
        chunk: int,
        weights_M: Tensor | None,
        with_gradient: bool,
        n_rows: int,
        *tensors: Tensor,
    ) -> Tensor:
        wanted = [
            place
            for place, tensor in enumerate(tensors)
            if with_gradient and ctx.needs_input_grad[5 + place] and tensor.is_floating_point()
        ]
        gradients = {place: torch.zeros_like(tensors[place]) for place in wanted}
        n_positions = len(tensors[0])
        total = tensors[0].new_zeros(())
        leaves = [
            tensor.detach().requires_grad_(place in gradients)
            for place, tensor in enumerate(tensors)
        ]
        for start in range(0, n_positions, chunk):
            part = slice(start, start + chunk)
            inputs = [
                leaf[part].detach().requires_grad_(leaf.requires_grad) if place < n_rows else leaf
                for place, leaf in enumerate(leaves)
            ]
            with torch.set_grad_enabled(bool(wanted)):
                losses_C = losses_of(*inputs)
                if weights_M is not None:
                    losses_C = losses_C * weights_M[part]
                share = losses_C.sum() / n_positions
            total += share.detach()
            found = torch.autograd.grad(share, [inputs[p] for p in wanted]) if wanted else ()
            for place, gradient in zip(wanted, found, strict=True):
                held = gradients[place]
                (held[part] if place < n_rows else held).add_(gradient)
        ctx.n_inputs, ctx.places = 5 + len(tensors), wanted
        ctx.save_for_backward(*gradients.values())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * ctx.n_inputs
        for place, gradient in zip(ctx.places, ctx.saved_tensors, strict=True):
            gradients[5 + place] = gradient * d_mean
        return tuple(gradients)
