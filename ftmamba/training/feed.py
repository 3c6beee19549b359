"""Batches made ready for their step before it begins.

What needs no model is done in a thread: reading the interactions, drawing negatives, finding the
distinct records and gathering them. The step finds tensors that only have to go to the device.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ftmamba.data.read_ahead import pinned, read_ahead

Batch = Mapping[str, Tensor]
"""Training interactions, as `InteractionBatches` yields them."""

Inputs = Mapping[str, Tensor]
"""What goes to the device: arguments of the model, and what the objective adds."""


@dataclass(frozen=True)
class Prepared:
    """A batch and all that can be known of it before the model runs.

    Attributes:
        batch: the interactions; they stay on the CPU.
        step: the optimizer step that the batch belongs to.
        inputs: made by the objective; on the CPU until the step.
    """

    batch: Batch
    step: int
    inputs: Inputs


class Objective(Protocol):
    """From a batch to its loss, in two parts."""

    def prepare(self, batch: Batch, step: int) -> Prepared:
        """Do what needs no model, in a thread: no gradient, no word to the other processes."""

    def __call__(self, prepared: Prepared) -> Tensor:
        """Return the mean loss of this process's interactions."""


def feed(
    objective: Objective, batches: Iterable[tuple[Batch, int]], device: torch.device
) -> AbstractContextManager[Iterator[Prepared]]:
    """Prepare batches, each given with its step, in a thread that keeps ahead of the steps.

    For a CUDA device their inputs lie in page-locked memory. See `read_ahead` for order and errors.
    """
    return read_ahead(_prepared(objective, batches, device))


def _prepared(
    objective: Objective, batches: Iterable[tuple[Batch, int]], device: torch.device
) -> Iterator[Prepared]:
    for batch, step in batches:
        prepared = objective.prepare(batch, step)
        yield replace(prepared, inputs=pinned(prepared.inputs, device))
