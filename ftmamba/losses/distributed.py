"""Rows of every rank, with the gradient of one process on the whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks; backward adds up every rank's gradient of them.

    With a loss that is the mean over each rank's rows, and gradients averaged over the ranks as
    DDP does, parameters then get the gradient of one process on the global batch. The common
    `gathered[rank] = rows` gives the other ranks' terms no gradient and is wrong.

    Args:
        rows: this rank's rows (B, ...), as many as every other rank's.

    Returns:
        The rows (ranks * B, ...) of rank 0, then of rank 1, ...; the input itself on one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _AllGather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def smallest_of_all_ranks(values: Tensor) -> int:
    """Return the least of all ranks' int64 values."""
    smallest = values.min().reshape(1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest.item())


def weight_of_rank(n_rows: int, device: torch.device) -> Tensor | float:
    """Return by what this rank's mean over its rows counts, so that all rows count alike.

    With gradients averaged over the ranks as DDP does, parameters then get the gradient of the
    mean over the rows of all ranks, of which some ranks may have more.

    Args:
        n_rows: this rank's.
        device: where a collective call works.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return 1.0
    total = torch.tensor(n_rows, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (n_rows * dist.get_world_size() / total.clamp(min=1)).float()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        received = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(received, rows.contiguous())
        return torch.cat(received)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
