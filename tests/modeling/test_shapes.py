"""Tensor names of the model tell the truth about their shapes."""

import pytest
import torch

from .conftest import make_batch

VARIANTS = [
    {},
    {"mixer": "attention"},
    {"bidirectional": True},
    {"mixer": "ssd"},
    {"mixer": "ssd", "bidirectional": True, "ssd_head_size": 4},
    {"pooling": "mean", "numeric_embedding": "periodic"},
    {"numeric_embedding": "ple", "norm_position": "post"},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_suffix_is_the_shape(build, checked_shapes, variant):
    model = build(**variant).train()
    with checked_shapes("modeling_ftmamba"):
        model(**make_batch()).scores.sum().backward()


def test_a_lying_suffix_is_noticed(checked_shapes):
    def lie():
        x_AB = torch.zeros(3)
        return x_AB

    with pytest.raises(AssertionError, match="x_AB has shape"), checked_shapes(__name__):
        lie()
