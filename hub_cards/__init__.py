"""Cards for the Hub, and the way there."""

from hub_cards.card import (
    DataFacts,
    Figure,
    ModelCardFacts,
    ModelFacts,
    ResultRow,
    render_model_card,
)
from hub_cards.push import push_checkpoint

__all__ = [
    "DataFacts",
    "Figure",
    "ModelCardFacts",
    "ModelFacts",
    "ResultRow",
    "push_checkpoint",
    "render_model_card",
]
