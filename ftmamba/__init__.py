"""FT-Mamba: from tables of users, items and interactions to recommendations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftmamba.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]


def __getattr__(name: str) -> Any:
    """Import the recommender at its first use: `python -m ftmamba --help` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ftmamba import recommender

    return getattr(recommender, name)
