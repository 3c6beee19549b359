"""Cards for the Hub, and the way there."""

from hub_cards.card import pin_revision, render_model_card
from hub_cards.curves import draw_learning_curves
from hub_cards.facts import (
    ColumnFacts,
    DataFacts,
    EndpointFacts,
    Figure,
    GroupRow,
    ModelCardFacts,
    ModelFacts,
    ResultRow,
    TrainingFacts,
    UserGroups,
)
from hub_cards.push import push_checkpoint

__all__ = [
    "ColumnFacts",
    "DataFacts",
    "EndpointFacts",
    "Figure",
    "GroupRow",
    "ModelCardFacts",
    "ModelFacts",
    "ResultRow",
    "TrainingFacts",
    "UserGroups",
    "draw_learning_curves",
    "pin_revision",
    "push_checkpoint",
    "render_model_card",
]
