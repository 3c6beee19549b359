"""Every baseline by its name, with its defaults and the grid its options are tuned on."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

from ftmamba.baselines.ease import EASE
from ftmamba.baselines.fitted import Baseline
from ftmamba.baselines.ials import IALS
from ftmamba.baselines.item_knn import ItemKNN
from ftmamba.baselines.markov import Markov
from ftmamba.baselines.pctm import PCTM
from ftmamba.baselines.popularity import Popularity, RecentPopularity
from ftmamba.named import make_named

BASELINES: Mapping[str, Callable[..., Baseline]] = {
    "popularity": Popularity,
    "popularity-7d": partial(RecentPopularity, days=7),
    "popularity-14d": partial(RecentPopularity, days=14),
    "item-knn": ItemKNN,
    "ease": EASE,
    "ials": IALS,
    "markov": Markov,
    "pctm": PCTM,
}

PCTM_SHAPES: tuple[Mapping[str, Any], ...] = (
    {"max_distance": 20, "distance_power": 1.0, "n_recent": 7, "recent_share": 0.8},
    {"max_distance": 10, "distance_power": 0.5, "n_recent": 50, "recent_share": 1.0},
)
"""How far transitions count and how far back the history does: as for long and short histories."""

GRIDS: Mapping[str, tuple[Baseline, ...]] = {
    "item-knn": (ItemKNN(50, 0), ItemKNN(100, 10), ItemKNN(200, 50), ItemKNN(400, 100)),
    "ease": tuple(EASE(regularization) for regularization in (20, 50, 100, 200, 500, 1000, 2000)),
    "ials": tuple(
        IALS(n_factors, regularization, alpha)
        for n_factors, regularization, alpha in product(
            (32, 64, 128), (0.1, 1.0, 10.0, 30.0), (1.0, 5.0, 20.0)
        )
    ),
    "markov": (Markov(), Markov((1.0, 0.5)), Markov((1.0, 0.5, 0.25))),
    "pctm": tuple(
        PCTM(tau=tau, popularity_weight=beta, **shape)
        for shape, tau, beta in product(PCTM_SHAPES, (150.0, 1_500.0, 11_250.0), (-0.4, -0.04))
    ),
}
"""What `tune` chooses from; a baseline without a grid has nothing to tune."""


def make_baseline(name: str, options: Mapping[str, Any] | None = None) -> Baseline:
    """Build the baseline of a recipe's name and options.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    return make_named("baseline", BASELINES, name, options or {})
