"""What a person is told, without the access token that may have slipped into it."""

from hub_cards.secrets import hide_tokens, known_tokens


def without_tokens(text: str, *tokens: str | None) -> str:
    """Return a text without these tokens, this process's, and anything that looks like one."""
    return hide_tokens(text, known_tokens(*tokens))
