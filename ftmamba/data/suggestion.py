"""The end of an error about an unknown name: the near one, and all there are."""

from collections.abc import Iterable

from modeling_ftmamba.columns import near


def suggestion(word: object, known: Iterable[str], lead: str = "it has") -> str:
    """Return "; did you mean 'city'? It has: age, city", or "; it has: age, city"."""
    known = list(known)
    hint = near(word, known)
    lead = f"{hint} {lead.capitalize()}" if hint else f"; {lead}"
    return f"{lead}: {', '.join(known)}"
