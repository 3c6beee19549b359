"""A pipeline over the tiny checkpoint, in this process."""

from pathlib import Path

import pytest

from ftmamba.checkpoint import load_checkpoint
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items

__all__ = ["checkpoint_folder", "recommend", "tiny_checkpoint", "tiny_items"]


@pytest.fixture(scope="session")
def recommend(checkpoint_folder: Path) -> FTMambaRecommendationPipeline:
    """What `pipeline("recommendation", folder)` makes, less the code in the folder."""
    checkpoint = load_checkpoint(checkpoint_folder)
    return FTMambaRecommendationPipeline(
        checkpoint.model,
        checkpoint.extractor,
        checkpoint.catalogue,
        task="recommendation",
        device="cpu",
    )
