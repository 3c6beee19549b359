"""From a finished run to a checkpoint on the Hub: facts, templates, cards, push, Space, handler."""

from hub_cards.card import pin_revision, render_model_card, with_card
from hub_cards.push import push_checkpoint

__all__ = ["pin_revision", "push_checkpoint", "render_model_card", "with_card"]
