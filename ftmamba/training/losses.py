"""Losses of positions against their candidates, in memory for a chunk of the positions.

A position is a query, a user as of one moment, and its target, the item of the next interaction; a
row of the interactions is one position. Every loss is a pure function of the queries, the items,
the targets and the negatives. The softmax over all items is in `fused_cross_entropy`.

Shapes: M positions, C positions of a chunk, S negatives, N items, D embedding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NUMBERS_AT_ONCE = 2**22
"""Logits, or numbers of negatives' embeddings, of a chunk: 16 MB of float32."""


@dataclass(frozen=True)
class Negatives:
    """The negatives of M positions.

    Attributes:
        rows: int64, rows of the items: (S,) for all positions, or (M, S) for each its own.
        log_q: natural log of how often each is drawn, of the same shape; None corrects nothing.
        target_log_q: the same of the targets (M,), for `in_batch_loss`.
        counts: (S,), how often each is a target of the batch, for `in_batch_loss`.
        excluded: from numbers of positions (C,) to which of their negatives are none (C, S); a
            position's own target never is one.
    """

    rows: Tensor
    log_q: Tensor | None = None
    target_log_q: Tensor | None = None
    counts: Tensor | None = None
    excluded: Callable[[Tensor], Tensor] | None = None


def in_batch_loss(
    queries_MD: Tensor, items_ND: Tensor, targets_M: Tensor, negatives: Negatives
) -> Tensor:
    """Softmax over the targets of the batch, log-Q corrected (Yi et al., RecSys 2019, eq. 3).

    An item drawn with probability q is a negative q times as often as it would be in a softmax
    over the catalogue; `logits - log q` undoes that. A position's target counts once, another item
    as often as it is a target: that is a weight of the item, so the negatives are the distinct
    targets with their counts.

    Args:
        queries_MD: embeddings of users, already divided by the temperature.
        items_ND: embeddings of items.
        targets_M: int64, the item of the next interaction, a row of `items_ND`.
        negatives: the distinct targets of the batch.

    Returns:
        Mean over the positions, in nats; 0 if there is none.
    """
    assert negatives.counts is not None
    bias_S = negatives.counts.to(queries_MD.dtype).log()
    if negatives.log_q is not None:
        bias_S = bias_S - negatives.log_q

    def losses_of(own_C: Tensor, others_CS: Tensor, out_CS: Tensor, index_C: Tensor) -> Tensor:
        if negatives.target_log_q is not None:
            own_C = own_C - negatives.target_log_q[index_C]
        return _softmax_losses(own_C, others_CS + bias_S, out_CS)

    return mean_against_negatives(losses_of, queries_MD, items_ND, targets_M, negatives)


def sampled_softmax_loss(
    queries_MD: Tensor, items_ND: Tensor, targets_M: Tensor, negatives: Negatives
) -> Tensor:
    """Cross-entropy whose sum over the other items is estimated (Bengio & Senécal, 2008).

    A negative drawn with probability q stands for 1 / (S q) items: the sum of exp(logit - log(S q))
    over the negatives has the expectation of the sum of exp(logit) over all items. A negative that
    is the position's own target, an accidental hit, is left out, so the expectation is that over
    all other items, and the target itself, always there, needs no correction.

    The arguments and the result are those of `in_batch_loss`.
    """
    bias = None
    if negatives.log_q is not None:
        bias = -(negatives.log_q + math.log(max(1, negatives.rows.shape[-1])))

    def losses_of(own_C: Tensor, others_CS: Tensor, out_CS: Tensor, index_C: Tensor) -> Tensor:
        if bias is not None:
            others_CS = others_CS + (bias if bias.ndim == 1 else bias[index_C])
        return _softmax_losses(own_C, others_CS, out_CS)

    return mean_against_negatives(losses_of, queries_MD, items_ND, targets_M, negatives)


def binary_loss(
    queries_MD: Tensor,
    items_ND: Tensor,
    targets_M: Tensor,
    negatives: Negatives,
    *,
    beta: float = 1.0,
) -> Tensor:
    """Binary cross-entropy whose positive counts as sigmoid(score)^beta (gSASRec, RecSys 2023).

    With a beta of 1 it is the loss `bce` (He et al., NCF, WWW 2017, equation 7). Few negatives make
    a model overconfident: it learns sigmoid(score) far above the probability. Raised to the power
    beta, which follows from the share of items that is drawn, the score is calibrated (Petrov &
    Macdonald, arXiv 2308.07192).

    NOTE[DIFF]: a negative that is the position's own target adds nothing; in the paper's code it
    pulls against the positive.

    The arguments are those of `in_batch_loss`; the negatives are drawn uniformly.

    Returns:
        Mean over positions and over their 1 + S pairs, in nats; 0 if there is no position.
    """

    def losses_of(own_C: Tensor, others_CS: Tensor, out_CS: Tensor, _: Tensor) -> Tensor:
        others_CS = others_CS.masked_fill(out_CS, -torch.inf)
        sum_C = beta * F.softplus(-own_C) + F.softplus(others_CS).sum(1)
        return sum_C / (1 + others_CS.shape[1])

    return mean_against_negatives(losses_of, queries_MD, items_ND, targets_M, negatives)


def gbce_beta(n_negatives: int, n_items: int, t: float) -> float:
    """Return the power of the positive's probability (gSASRec).

    Args:
        n_negatives: negatives of each position.
        n_items: size of the catalogue from which they are drawn.
        t: 0 is plain binary cross-entropy, 1 calibrates fully.

    Raises:
        ValueError: `t` is not in [0, 1], or there are not from 1 to n_items - 1 negatives.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"loss 'gbce': t must be in [0, 1], got {t}")
    if not 1 <= n_negatives <= n_items - 1:
        raise ValueError(
            f"loss 'gbce': {n_negatives} negatives of a catalogue of {n_items} items; draw from 1 "
            f"to {n_items - 1}"
        )
    alpha = n_negatives / (n_items - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def squared_loss(
    queries_MD: Tensor, items_ND: Tensor, targets_M: Tensor, negatives: Negatives
) -> Tensor:
    """Squared error of the inner product against 1 or 0, the loss `mse` (Starnes & Webster, 2024).

    The arguments are those of `in_batch_loss`.

    Returns:
        Mean over positions and over their 1 + S pairs, those that are none adding 0.
    """

    def losses_of(own_C: Tensor, others_CS: Tensor, out_CS: Tensor, _: Tensor) -> Tensor:
        sum_C = (own_C - 1).square() + others_CS.masked_fill(out_CS, 0).square().sum(1)
        return sum_C / (1 + others_CS.shape[1])

    return mean_against_negatives(losses_of, queries_MD, items_ND, targets_M, negatives)


def full_mse_loss(
    queries_MD: Tensor,
    items_ND: Tensor,
    targets_M: Tensor,
    *,
    user_counts_M: Tensor,
    positive_weight: float,
    l2: float,
) -> Tensor:
    """The objective of implicit ALS (Hu, Koren & Volinsky, ICDM 2008, equation 3), by the batch.

    Over all users u and items i it is, up to a constant,

        sum_u [ sum_i w_ui (x_ui - s_ui)^2 + l2 (|u|^2 + mean_i |v_i|^2) ]

    where an interaction has label x 1 and weight w = `positive_weight`, any other pair label 0 and
    weight 1. Summed over the catalogue, the squared scores of a user are u' (V'V) u, so a
    step costs O((M + N) D^2) and no matrix of users by items is made (Bayer et al., WWW 2017).
    Each interaction stands for its own positive and for 1 / count of its user's catalogue.

    Args:
        queries_MD: embeddings of users, already divided by the temperature.
        items_ND: embeddings of all items.
        targets_M: int64, the item of the next interaction, a row of `items_ND`.
        user_counts_M: training interactions of each position's user.
        positive_weight: weight of an interaction against 1 for any other pair.
        l2: penalty on the embeddings.

    Returns:
        Mean over the positions; its mean over all of them is the objective over their number.
    """
    gram_DD = items_ND.T @ items_ND
    scores_M = (queries_MD * items_ND[targets_M]).sum(-1)
    own_M = positive_weight * (1 - scores_M).square() - scores_M.square()
    catalogue_M = ((queries_MD @ gram_DD) * queries_MD).sum(-1)
    length = items_ND.square().sum(-1).mean()
    penalty_M = l2 * (queries_MD.square().sum(-1) + length)
    return (own_M + (catalogue_M + penalty_M) / user_counts_M).mean()


LossOfLogits = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From the targets' logits (C,), those of the negatives (C, S), which of them are none (C, S) and
the numbers of the positions (C,) to their losses (C,)."""


def mean_against_negatives(
    losses_of: LossOfLogits,
    queries_MD: Tensor,
    items_ND: Tensor,
    targets_M: Tensor,
    negatives: Negatives,
) -> Tensor:
    """Return the mean of a loss of the logits of targets and negatives; 0 without positions."""
    index_M = torch.arange(len(targets_M), device=targets_M.device)

    def loss(own_C: Tensor, others_CS: Tensor, rows: Tensor, index_C: Tensor) -> Tensor:
        out_CS = rows == targets_M[index_C][:, None]
        if negatives.excluded is not None:
            out_CS = out_CS | negatives.excluded(index_C)
        return losses_of(own_C, others_CS, out_CS, index_C)

    if negatives.rows.ndim == 1:

        def with_shared(
            queries_CD: Tensor, targets_CD: Tensor, index_C: Tensor, negatives_SD: Tensor
        ) -> Tensor:
            own_C = (queries_CD * targets_CD).sum(-1)
            return loss(own_C, queries_CD @ negatives_SD.T, negatives.rows, index_C)

        rows = (queries_MD, items_ND[targets_M], index_M)
        chunk = max(1, NUMBERS_AT_ONCE // max(1, len(negatives.rows)))
        return mean_in_chunks(with_shared, rows, (items_ND[negatives.rows],), chunk=chunk)

    def with_own(queries_CD: Tensor, index_C: Tensor, all_ND: Tensor) -> Tensor:
        rows_CS = negatives.rows[index_C]
        own_C = (queries_CD * all_ND[targets_M[index_C]]).sum(-1)
        return loss(
            own_C, torch.einsum("cd,csd->cs", queries_CD, all_ND[rows_CS]), rows_CS, index_C
        )

    n_numbers = max(1, negatives.rows.shape[1] * items_ND.shape[1])
    chunk = max(1, NUMBERS_AT_ONCE // n_numbers)
    return mean_in_chunks(with_own, (queries_MD, index_M), (items_ND,), chunk=chunk)


def mean_in_chunks(
    losses_of: Callable[..., Tensor],
    rows: Sequence[Tensor],
    shared: Sequence[Tensor],
    *,
    chunk: int,
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

    Returns:
        Mean over the positions; 0 if there is no position.
    """
    mean: Tensor = _InChunks.apply(  # type: ignore[no-untyped-call]
        losses_of, chunk, torch.is_grad_enabled(), len(rows), *rows, *shared
    )
    return mean


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        losses_of: Callable[..., Tensor],
        chunk: int,
        with_gradient: bool,
        n_rows: int,
        *tensors: Tensor,
    ) -> Tensor:
        wanted = [
            index
            for index, tensor in enumerate(tensors)
            if with_gradient and ctx.needs_input_grad[4 + index] and tensor.is_floating_point()
        ]
        gradients = {index: torch.zeros_like(tensors[index]) for index in wanted}
        n_positions = len(tensors[0])
        total = tensors[0].new_zeros(())
        leaves = [
            tensor.detach().requires_grad_(index in gradients)
            for index, tensor in enumerate(tensors)
        ]
        for start in range(0, n_positions, chunk):
            part = slice(start, start + chunk)
            inputs = [
                leaf[part].detach().requires_grad_(leaf.requires_grad) if index < n_rows else leaf
                for index, leaf in enumerate(leaves)
            ]
            with torch.set_grad_enabled(bool(wanted)):
                share = losses_of(*inputs).sum() / n_positions
            total += share.detach()
            found = torch.autograd.grad(share, [inputs[i] for i in wanted]) if wanted else ()
            for index, gradient in zip(wanted, found, strict=True):
                held = gradients[index]
                (held[part] if index < n_rows else held).add_(gradient)
        ctx.n_inputs, ctx.wanted = 4 + len(tensors), wanted
        ctx.save_for_backward(*gradients.values())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * ctx.n_inputs
        for index, gradient in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            gradients[4 + index] = gradient * d_mean
        return tuple(gradients)


def _softmax_losses(own_C: Tensor, others_CS: Tensor, out_CS: Tensor) -> Tensor:
    logits = torch.cat([own_C[:, None], others_CS.masked_fill(out_CS, -torch.inf)], 1)
    first_C = torch.zeros(len(own_C), dtype=torch.int64, device=own_C.device)
    return F.cross_entropy(logits, first_C, reduction="none")
