"""FT-Mamba: from tables of users, items and interactions to recommendations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftmamba.recommender import Recommendation, Recommender, Run, train

__all__ = ["Recommendation", "Recommender", "Run", "train"]


def __getattr__(name: str) -> Any:
    """Import the recommender at its first use: `python -m ftmamba --help` needs no torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ftmamba")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ftmamba import recommender

    return getattr(recommender, name)
