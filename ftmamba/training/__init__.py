"""Training: one loop for every model, loss and number of processes."""

from ftmamba.training.embedding import catalogue_embeddings, user_embeddings
from ftmamba.training.loop import FitResult, fit

__all__ = ["FitResult", "catalogue_embeddings", "fit", "user_embeddings"]
