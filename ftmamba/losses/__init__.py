"""Training losses: pure functions on tensors, one a file."""

from ftmamba.losses.bce import bce_loss
from ftmamba.losses.distributed import all_gather_with_gradient, smallest_of_all_ranks
from ftmamba.losses.full_mse import full_mse_loss
from ftmamba.losses.full_softmax import full_softmax_loss
from ftmamba.losses.in_batch import in_batch_loss
from ftmamba.losses.mse import mse_loss
from ftmamba.losses.negatives import KnownPositives, uniform_negatives

__all__ = [
    "KnownPositives",
    "all_gather_with_gradient",
    "bce_loss",
    "full_mse_loss",
    "full_softmax_loss",
    "in_batch_loss",
    "mse_loss",
    "smallest_of_all_ranks",
    "uniform_negatives",
]
