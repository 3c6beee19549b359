"""Losses of every position of sequences at once: what came next, among all items or a few.

Each is a pure function of the outputs at M positions, of the item that came next at each, and of
the embeddings of the items. The M times I logits never exist at once: positions are taken a chunk
at a time, forward and backward.
"""

from ftmamba.losses.sequences.fused_linear_cross_entropy import (
    fused_linear_cross_entropy,
    fused_linear_cross_entropy_of_each,
)
from ftmamba.losses.sequences.gbce import sequence_gbce
from ftmamba.losses.sequences.in_batch import sequence_in_batch
from ftmamba.losses.sequences.negatives import NEGATIVES, NegativeSampler
from ftmamba.losses.sequences.prefixes import Prefixes
from ftmamba.losses.sequences.sampled_softmax import sequence_sampled_softmax

__all__ = [
    "NEGATIVES",
    "NegativeSampler",
    "Prefixes",
    "fused_linear_cross_entropy",
    "fused_linear_cross_entropy_of_each",
    "sequence_gbce",
    "sequence_in_batch",
    "sequence_sampled_softmax",
]
