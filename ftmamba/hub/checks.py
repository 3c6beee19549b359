"""What can be known to go wrong with a push before anything is trained."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import get_token

from ftmamba.recipe import Recipe
from hub_cards.push import Destination
from hub_cards.secrets import hide_tokens, known_tokens


def check_hub(recipe: Recipe) -> None:
    """Raise ValueError, before anything is trained, where pushing cannot go well.

    Nothing is asked of the Hub.
    """
    where = _place_of_token(recipe.to_dict(), known_tokens())
    if where:
        raise ValueError(
            f"{where} of the recipe holds an access token, and recipes are published; take it out "
            "and set HF_TOKEN, or run `hf auth login`"
        )
    if not recipe.push_to_hub:
        return
    Destination(recipe.hub_model_id)
    if get_token() is None:
        raise ValueError(
            "push_to_hub needs an access token that may write; run `hf auth login`, or set HF_TOKEN"
        )


def _place_of_token(values: Mapping[str, Any], tokens: tuple[str, ...], above: str = "") -> str:
    """Return the dotted name of the first value that holds a token, an empty text for none."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            if found := _place_of_token(value, tokens, f"{name}."):
                return found
        elif hide_tokens(str(value), tokens) != str(value):
            return name
    return ""
