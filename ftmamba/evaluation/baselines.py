"""Baselines: simple models that a learned one must beat under the same protocol, and their tuning.

All of them count. None needs more than the training interactions, and users without a history get
the popularity of the items. iALS needs `implicit`, in the extra `baselines`.

Shapes: U users, I items, B items of a block, D factors, R interactions.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation.evaluate import evaluate
from ftmamba.evaluation.named import make_named
from ftmamba.evaluation.protocol import Protocol
from ftmamba.evaluation.splits import Split
from modeling_ftmamba.catalogue import history_weights

N_SIMILARITIES_AT_ONCE = 2**24
N_PAIRS_AT_ONCE = 2**25

MOST_USERS, LEAST_USERS, MOST_SCORES = 5_000, 500, 4 * 10**7
"""Users of validation by whom options are chosen: fewer where the catalogue is large."""

SECONDS_A_DAY = 86_400

MOST_HISTORY = 200
"""Newest items that a blend reads of a user."""

MAX_ITEMS = 30_000
"""An inverse of 30,000 x 30,000 float64 takes 7 GB, and a quarter of an hour on two cores."""

Scores = NDArray[np.float32]
ScoreUsers = Callable[[NDArray[np.int64]], Scores]
"""User ids -> scores (U, I)."""

Sequences = tuple[NDArray[np.int64], NDArray[np.int64]]
"""User and item (R,) of each interaction, by user, each user's oldest first."""


@dataclass(frozen=True, eq=False)
class FittedBaseline:
    """A baseline after fitting; a `Scorer`.

    Attributes:
        name: the model's row in a table.
        score_warm: ids of users with a history -> their scores (U, I).
        is_warm: bool (U,), the users who have a history.
        popularity: (I,), the scores of all other users.
    """

    name: str
    score_warm: ScoreUsers
    is_warm: NDArray[np.bool_]
    popularity: Scores

    def scores(self, user_ids: NDArray[np.int64]) -> Scores:
        is_warm_U = self.is_warm[user_ids]
        if is_warm_U.all() and len(user_ids):
            return self.score_warm(user_ids)
        scores_UI = np.tile(self.popularity, (len(user_ids), 1))
        if is_warm_U.any():
            scores_UI[is_warm_U] = self.score_warm(user_ids[is_warm_U])
        return scores_UI


class Baseline(typing.Protocol):
    """The options of a baseline, which fitting does not change."""

    @property
    def name(self) -> str:
        """The model's row in a table."""

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:
        """Fit the training interactions.

        Args:
            train: all interactions before `as_of`.
            as_of: time at which the model is asked, UTC seconds; by default the second after the
                last training interaction. Only recent popularity reads it.
        """


@dataclass(frozen=True)
class Popularity:
    """Score of an item: its number of training interactions."""

    name: ClassVar[str] = "popularity"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        _check_train(self.name, train)
        return _same_for_all(self.name, _item_counts(train), train.n_users)


@dataclass(frozen=True)
class RecentPopularity:
    """Score of an item: its training interactions in [as_of - days, as_of).

    Attributes:
        days: length of the window.
    """

    days: float = 7

    def __post_init__(self) -> None:
        _check_options(self, "recent-popularity", positive=("days",))

    @property
    def name(self) -> str:
        return f"popularity {self.days:g}d"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:
        _check_train(self.name, train)
        if train.times is None:
            raise ValueError(
                f"baseline {self.name!r} needs times, but the interactions have none; name their "
                "time column in the schema, or leave this baseline out"
            )
        until = as_of if as_of is not None else int(train.times.max()) + 1
        is_recent = (train.times >= until - self.days * SECONDS_A_DAY) & (train.times < until)
        return _same_for_all(self.name, _item_counts(train.select(is_recent)), train.n_users)


@dataclass(frozen=True)
class ItemKNN:
    """Item neighbours (Sarwar et al. 2001; shrinkage as in Ferrari Dacrema et al. 2019).

    Score of item j: sum of similarities s_ij over the items i in the user's history.
    s_ij = c_ij / (sqrt(n_i n_j) + shrink), where c_ij users have both and n_i have i; only the
    `n_neighbours` most similar j of each i are kept.

    Attributes:
        n_neighbours: kept of each item.
        shrink: lowers similarities that rest on few users; 0 is the plain cosine.
    """

    name: ClassVar[str] = "item-kNN"
    n_neighbours: int = 200
    shrink: float = 50.0

    def __post_init__(self) -> None:
        _check_options(self, "item-knn", whole=("n_neighbours",))
        if not self.shrink >= 0:
            raise ValueError(f"baseline 'item-knn': shrink must be >= 0, got {self.shrink!r}")

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        history_UI = _history_matrix(train, self.name)
        similarity_II = self.neighbours(train)
        return _fitted(
            self.name, train, lambda users: (history_UI[users] @ similarity_II).toarray()
        )

    def history_shape(self) -> Mapping[str, Any]:
        """Return how a blend weighs a history: every item alike."""
        return {"max_history": MOST_HISTORY}

    def neighbours(self, train: Interactions) -> Any:
        """Return the similarities, a CSR matrix (I, I), computed a block of rows at a time."""
        history_UI = _history_matrix(train, self.name)
        n_items = history_UI.shape[1]
        norm_I = np.sqrt(np.asarray(history_UI.sum(0)).ravel())
        by_item_UI = history_UI.tocsc()
        step = max(1, N_SIMILARITIES_AT_ONCE // n_items)
        blocks = []
        for start in range(0, n_items, step):
            similarity_BI = (by_item_UI[:, start : start + step].T @ history_UI).tocoo()
            items_R, others_R = similarity_BI.row + start, similarity_BI.col
            norm_R = norm_I[items_R] * norm_I[others_R]
            similarity_BI.data = similarity_BI.data / (norm_R + self.shrink + 1e-9)
            similarity_BI.data[items_R == others_R] = 0
            blocks.append(strongest(similarity_BI.tocsr(), self.n_neighbours))
        return sparse.vstack(blocks, format="csr")


def strongest(matrix_II: Any, n: int) -> Any:
    """Return the n highest positive values of each row of a CSR matrix, among equals the first."""
    matrix_II.sum_duplicates()
    starts, data = matrix_II.indptr, matrix_II.data
    sizes = np.diff(starts)
    is_kept_N = data > 0
    crowded_N = np.flatnonzero(np.repeat(sizes > n, sizes))
    row_N = np.repeat(np.arange(len(sizes)), sizes)[crowded_N]
    order_N = np.lexsort((-data[crowded_N], row_N))
    rank_N = np.arange(len(row_N)) - np.searchsorted(row_N, row_N)
    is_kept_N[crowded_N[order_N[rank_N >= n]]] = False
    kept = np.concatenate([[0], np.cumsum(is_kept_N)])[starts]
    kept_N = data[is_kept_N], matrix_II.indices[is_kept_N], kept
    return sparse.csr_matrix(kept_N, shape=matrix_II.shape)


@dataclass(frozen=True)
class EASE:
    """A linear auto-encoder of histories in closed form (Steck, WWW 2019).

    Scores x_u B with B = I - P diag(1 / diag P), P = (X'X + regularization I)^-1.

    Attributes:
        regularization: the only option.
    """

    name: ClassVar[str] = "EASE"
    regularization: float = 500.0

    def __post_init__(self) -> None:
        _check_options(self, "ease", positive=("regularization",))

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        if train.n_items > MAX_ITEMS:
            raise ValueError(
                f"baseline 'EASE' inverts a matrix of items x items, at most {MAX_ITEMS} items, "
                f"got {train.n_items}; leave it out and keep item-kNN and iALS"
            )
        history_UI, weights_II = _history_matrix(train, self.name), self._weights(train)
        return _fitted(self.name, train, lambda users: history_UI[users] @ weights_II)

    def history_shape(self) -> Mapping[str, Any]:
        """Return how a blend weighs a history: every item alike."""
        return {"max_history": MOST_HISTORY}

    def neighbours(self, train: Interactions) -> Any:
        """Return the weights as a sparse matrix (I, I)."""
        return sparse.csr_matrix(self._weights(train))

    def _weights(self, train: Interactions) -> Scores:
        history_UI = _history_matrix(train, self.name)
        gram_II = (history_UI.T @ history_UI).toarray().astype(np.float64)
        diagonal = np.diag_indices(train.n_items)
        gram_II[diagonal] += self.regularization
        inverse_II = np.linalg.inv(gram_II)
        weights_II: Scores = (-inverse_II / np.diag(inverse_II)).astype(np.float32)
        weights_II[diagonal] = 0
        return weights_II


@dataclass(frozen=True)
class IALS:
    """Implicit matrix factorisation by alternating least squares (Hu et al. 2008), `implicit`'s.

    Attributes:
        n_factors: width.
        regularization: of all factors.
        alpha: weight of a pair that occurs; one that does not weighs 1.
        n_iterations: over users and items.
        seed: of the initial factors; the same seed gives the same fit.
    """

    name: ClassVar[str] = "iALS"
    n_factors: int = 32
    regularization: float = 30.0
    alpha: float = 5.0
    n_iterations: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("n_factors", "n_iterations")
        _check_options(self, "ials", whole=whole, positive=("regularization", "alpha"))

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        als = require("implicit.cpu.als", self.name)
        threads = require("threadpoolctl", self.name)
        history_UI = _history_matrix(train, self.name)
        # implicit starts its own threads; with those of BLAS beside them it is ten times slower.
        with threads.threadpool_limits(1, "blas"):
            model = als.AlternatingLeastSquares(
                factors=self.n_factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.n_iterations,
                random_state=self.seed,
            )
            model.fit(history_UI, show_progress=False)
        users_UD, items_ID = model.user_factors, model.item_factors
        return _fitted(self.name, train, lambda users: users_UD[users] @ items_ID.T)


@dataclass(frozen=True)
class Markov:
    """A Markov chain: transitions to item j from the user's last items, plus some popularity.

    A transition from i to j weighs 1/d where j came d interactions after i, d = 1 .. max_distance.
    Without times the order of the file counts.

    Attributes:
        last_weights: weight of the user's last item, the one before it, and so on.
        max_distance: farthest transition counted.
        popularity_weight: of an item's count; orders the items that never followed.
    """

    last_weights: tuple[float, ...] = (1.0,)
    max_distance: int = 3
    popularity_weight: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "last_weights", tuple(self.last_weights))
        if not self.last_weights:
            raise ValueError("baseline 'markov': last_weights is empty; give at least one weight")
        _check_options(self, "markov", whole=("max_distance",))

    @property
    def name(self) -> str:
        n_last = len(self.last_weights)
        return "Markov" if n_last == 1 else f"Markov, last {n_last}"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        sequences = _sequences(train, self.name)
        weights = np.float32(1) / np.arange(1, self.max_distance + 1, dtype=np.float32)
        transitions_II = _transition_counts(sequences, train.n_items, weights)
        last = np.array((*self.last_weights, 0), np.float32)
        weights_R = last[np.minimum(_ages(sequences[0]), len(self.last_weights))]
        bias_I = np.float32(self.popularity_weight) * _item_counts(train)
        history_UI = _weighted_history(sequences, weights_R, train)
        return _fitted(
            self.name, train, lambda users: (history_UI[users] @ transitions_II).toarray() + bias_I
        )


@dataclass(frozen=True)
class PCTM:
    """Transitions counted at many distances and smoothed, over the whole history.

    C_ij sums d^-distance_power over the times j came d interactions after i. The evidence is
    E_ij = log(1 + C_ij I / tau), with I the number of items, and the score

        sum_a h_a E[item of age a, j] + popularity_weight log((f_j + 1) / sum_i (f_i + 1))

    where the newest item has age 0 and f counts interactions. Without times the order of the file
    counts. The defaults were tuned on MovieLens-1M.

    Attributes:
        max_distance: farthest transition counted.
        distance_power: how fast a transition loses weight with its distance.
        tau: smoothing; the higher, the more evidence adds up as counts do.
        ratio: h_a of each recent item over that of the next newer one.
        n_recent: number of newest items that share `recent_share`; all older items share the rest
            equally.
        recent_share: of the weights h, which of a history longer than `n_recent` sum to 1. With 1
            only the recent items count.
        popularity_weight: beta; negative prefers rarer items.
        max_history: newest items that count.
    """

    name: ClassVar[str] = "PCTM"
    max_distance: int = 20
    distance_power: float = 1.0
    tau: float = 150.0
    ratio: float = 0.6
    n_recent: int = 7
    recent_share: float = 0.8
    popularity_weight: float = -0.4
    max_history: int = 200

    def __post_init__(self) -> None:
        whole = ("max_distance", "n_recent", "max_history")
        _check_options(self, "pctm", whole=whole, positive=("tau", "ratio"))
        if not 0 <= self.recent_share <= 1:
            raise ValueError(
                f"baseline 'pctm': recent_share must be in [0, 1], got {self.recent_share!r}"
            )

    def fit(
        self,
        train: Interactions,
        *,
        as_of: int | None = None,  # noqa: ARG002
        memory: dict[Any, Any] | None = None,
    ) -> FittedBaseline:
        """Fit as `Baseline.fit` does; `memory` keeps what other options count in the same way."""
        sequences, evidence_II = _sequences(train, self.name), self.neighbours(train, memory)
        counts_I = _item_counts(train).astype(np.float64) + 1
        bias_I = (self.popularity_weight * np.log(counts_I / counts_I.sum())).astype(np.float32)
        history_UI = _weighted_history(sequences, self._weights(sequences[0]), train)
        return _fitted(
            self.name, train, lambda users: (history_UI[users] @ evidence_II).toarray() + bias_I
        )

    def history_shape(self) -> Mapping[str, Any]:
        """Return how a blend weighs a history."""
        return {
            name: getattr(self, name)
            for name in ("max_history", "ratio", "n_recent", "recent_share")
        }

    def neighbours(self, train: Interactions, memory: dict[Any, Any] | None = None) -> Any:
        """Return the evidence, a CSR matrix (I, I); see `fit` for the memory."""
        memory = {} if memory is None else memory
        counted = self.max_distance, self.distance_power
        if counted not in memory:
            distances = np.arange(1, self.max_distance + 1, dtype=np.float32)
            weights = distances ** np.float32(-self.distance_power)
            sequences = _sequences(train, self.name)
            memory.clear()  # one at a time is kept: they are large
            memory[counted] = _transition_counts(sequences, train.n_items, weights)
        evidence_II = memory[counted].copy()
        evidence_II.data = np.log1p(evidence_II.data * np.float32(train.n_items / self.tau))
        return evidence_II

    def _weights(self, user_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return h of each event (R,); 0 beyond `max_history`."""
        age_R = _ages(user_R)
        n_R = np.minimum(np.bincount(user_R)[user_R], self.max_history)
        h_R = history_weights(age_R, n_R, self.ratio, self.n_recent, self.recent_share)
        return np.where(age_R < n_R, h_R, 0).astype(np.float32)


def require(package: str, baseline: str) -> Any:
    """Import a package of the extra `baselines`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"baseline {baseline!r} needs the package {package.split('.')[0]!r}; "
            "run pip install 'ftmamba[baselines]'"
        ) from error


def _fitted(name: str, train: Interactions, score_warm: ScoreUsers) -> FittedBaseline:
    """Return a personal model; users without a history get the popularity."""
    is_warm_U = np.bincount(train.user_ids, minlength=train.n_users) > 0
    return FittedBaseline(name, score_warm, is_warm_U, _item_counts(train))


def _same_for_all(name: str, popularity: Scores, n_users: int) -> FittedBaseline:
    no_user = np.zeros(n_users, bool)
    return FittedBaseline(
        name, lambda users: np.tile(popularity, (len(users), 1)), no_user, popularity
    )


def _item_counts(interactions: Interactions) -> Scores:
    """Return the number of interactions of every item, (I,)."""
    return np.bincount(interactions.item_ids, minlength=interactions.n_items).astype(np.float32)


def _history_matrix(train: Interactions, baseline: str) -> Any:
    """Return a CSR matrix (U, I), float32: 1 for each pair of a user and an item that occurs.

    Weights are left out: that a user rated an item says more than the rating.
    """
    _check_train(baseline, train)
    ones = np.ones(len(train), np.float32)
    shape = (train.n_users, train.n_items)
    history_UI = sparse.csr_matrix((ones, (train.user_ids, train.item_ids)), shape=shape)
    history_UI.data[:] = 1
    return history_UI


def _sequences(train: Interactions, baseline: str) -> Sequences:
    """Sort by user and time, equal times in the order of the file; without times by user alone."""
    _check_train(baseline, train)
    times_R = train.times if train.times is not None else np.zeros(len(train), np.int64)
    order_R = np.lexsort((times_R, train.user_ids))
    return train.user_ids[order_R], train.item_ids[order_R]


def _ages(user_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many events of its user follow each event (R,) of sorted sequences."""
    counts_U = np.bincount(user_R)
    return np.cumsum(counts_U)[user_R] - 1 - np.arange(len(user_R))


def _transition_counts(
    sequences: Sequences, n_items: int, distance_weights: NDArray[np.float32]
) -> Any:
    """Return a CSR matrix (I, I): item -> later item of the same user, summed weights.

    The weights are those of pairs that are 1, 2, ... interactions apart.
    """
    user_R, item_R = sequences
    counts_II = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    step = max(1, N_PAIRS_AT_ONCE // max(1, len(user_R)))
    for first in range(1, len(distance_weights) + 1, step):
        parts = []
        for distance in range(first, min(first + step, len(distance_weights) + 1)):
            rows = np.flatnonzero(user_R[distance:] == user_R[:-distance])
            weights = np.full(len(rows), distance_weights[distance - 1], np.float32)
            parts.append((weights, item_R[rows], item_R[rows + distance]))
        weights, items, later = (np.concatenate(part) for part in zip(*parts, strict=True))
        counts_II += sparse.csr_matrix((weights, (items, later)), shape=(n_items, n_items))
    return counts_II


def _weighted_history(
    sequences: Sequences, weights_R: NDArray[np.float32], train: Interactions
) -> Any:
    """Return a CSR matrix (U, I) of the summed weights of each user's items."""
    user_R, item_R = (ids_R[weights_R != 0] for ids_R in sequences)
    shape = (train.n_users, train.n_items)
    return sparse.csr_matrix((weights_R[weights_R != 0], (user_R, item_R)), shape=shape)


def _check_train(baseline: str, train: Interactions) -> None:
    if not len(train):
        raise ValueError(
            f"baseline {baseline!r} has no training interactions; choose another split or check "
            "the tables"
        )


def _check_options(
    baseline: object, name: str, *, whole: Sequence[str] = (), positive: Sequence[str] = ()
) -> None:
    for option in (*whole, *positive):
        value = getattr(baseline, option)
        is_number = isinstance(value, int if option in whole else int | float)
        if isinstance(value, bool) or not is_number or not value > 0:
            rule = "a whole number >= 1" if option in whole else "a positive number"
            raise ValueError(f"baseline {name!r}: {option} must be {rule}, got {value!r}")


BASELINES: Mapping[str, Callable[..., Baseline]] = {
    "popularity": Popularity,
    "popularity-7d": partial(RecentPopularity, days=7),
    "popularity-14d": partial(RecentPopularity, days=14),
    "popularity-recent": RecentPopularity,
    "item-knn": ItemKNN,
    "ease": EASE,
    "ials": IALS,
    "markov": Markov,
    "pctm": PCTM,
}

IN_ORDER = ("markov", "pctm")
"""Baselines that read the order of interactions."""

IN_TIME = ("popularity-7d", "popularity-14d", "popularity-recent")
"""Baselines that read their times."""

PCTM_SHAPES: tuple[Mapping[str, Any], ...] = (
    {"max_distance": 20, "distance_power": 1.0, "n_recent": 7, "recent_share": 0.8},
    {"max_distance": 10, "distance_power": 0.5, "n_recent": 50, "recent_share": 1.0},
)
"""How far transitions and the history reach: for long histories, and for short ones."""

GRIDS: Mapping[str, tuple[Baseline, ...]] = {
    "popularity-recent": tuple(RecentPopularity(days) for days in (1, 3, 7, 14, 30, 90)),
    "item-knn": (ItemKNN(50, 0), ItemKNN(100, 10), ItemKNN(200, 50), ItemKNN(400, 100)),
    "ease": tuple(EASE(regularization) for regularization in (20, 100, 500, 2000)),
    "ials": tuple(
        IALS(32, regularization, alpha)
        for regularization, alpha in product((1.0, 10.0, 30.0), (1.0, 5.0, 20.0))
    ),
    "markov": (Markov(), Markov((1.0, 0.5)), Markov((1.0, 0.5, 0.25))),
    "pctm": tuple(
        PCTM(tau=tau, popularity_weight=-0.04, **shape)
        for shape, tau in product(PCTM_SHAPES, (150.0, 1_500.0, 11_250.0))
    ),
}
"""Where `tune` begins; a baseline without a grid has no options worth tuning."""

FINER: Mapping[type[Any], Callable[[Any], Sequence[Mapping[str, Sequence[Any]]]]] = {
    EASE: lambda best: ({"regularization": (best.regularization / 2, best.regularization * 2)},),
    IALS: lambda best: (
        {"n_factors": (64, 128)},
        {"regularization": (best.regularization / 4, best.regularization * 4)},
    ),
    ItemKNN: lambda _best: ({"shrink": (0, 10, 50, 200)}, {"n_neighbours": (20, 50, 200)}),
    Markov: lambda _best: ({"max_distance": (1, 10)},),
    PCTM: lambda best: (
        {"popularity_weight": (-0.4, -0.15, 0.05)},
        {"tau": (best.tau / 10, best.tau / 4, best.tau * 4)},
        {"ratio": (0.4, 0.8)},
        {"max_distance": (5, 50)},
    ),
}
"""Options to change, one after the other, once the best of a grid is known, and their values."""

MOST_SECONDS = 60
"""A baseline that takes longer to tune is proposed to nobody."""


def tuning_seconds(name: str, train: Interactions) -> float:
    """Estimate how long tuning a baseline takes on a core, by its arithmetic; 0 for the fast."""
    n_pairs, n_users, n_items = len(train), train.n_users, train.n_items
    if name == "ease":
        return 6 * 1e-10 * n_items**3 if n_items <= MAX_ITEMS else float("inf")
    if name == "ials":
        widths = [32] * len(GRIDS[name]) + [64, 128, 64, 64]
        steps = (n_pairs * width + (n_users + n_items) * width**2 for width in widths)
        return IALS.n_iterations * 4e-9 * sum(steps)
    return 0.0


def proposed_baselines(train: Interactions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the baselines worth running on some interactions, and why others are left out."""
    names, reasons = ["popularity"], []
    if train.times is not None:
        names.append("popularity-recent")
    names.append("item-knn")
    for name in ("ease", "ials"):
        seconds = tuning_seconds(name, train)
        if seconds <= MOST_SECONDS:
            names.append(name)
        else:
            cost = f"{seconds / 60:.0f} minutes" if seconds < float("inf") else "more than memory"
            reasons.append(
                f"evaluation.baselines: without {name}, which would take {cost} for "
                f"{train.n_users:,} users and {train.n_items:,} items; name it to have it"
            )
    return tuple(names + (list(IN_ORDER) if train.is_ordered else [])), tuple(reasons)


def make_baseline(name: str, options: Mapping[str, Any] | None = None) -> Baseline:
    """Build the baseline of a recipe's name and options.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    return make_named("baseline", BASELINES, name, options or {})


class Tuned(NamedTuple):
    """Every candidate with its metric on validation; the first of the best is `best`."""

    scores: Mapping[Baseline, float]

    @property
    def ranked(self) -> list[Any]:
        """The candidates, the best first."""
        return sorted(self.scores, key=lambda one: -self.scores[one])

    @property
    def best(self) -> Baseline:
        """The first of the best."""
        best: Baseline = self.ranked[0]
        return best

    @property
    def score(self) -> float:
        """The metric of the best."""
        return self.scores[self.best]


def tune(
    candidates: Sequence[Baseline],
    split: Split,
    *,
    protocol: Protocol | None = None,
    metric: str = "NDCG@10",
) -> Tuned:
    """Fit every candidate on `split.train`, then finer steps from the best (`FINER`).

    They are judged on `split.validation`, or on a seeded sample of its users where these are many.
    The test part is not used. Fit the best again on `split.before_test` before its test.
    """
    if not candidates:
        raise ValueError("there is nothing to tune: the grid is empty; give at least one candidate")
    if not len(split.validation):
        raise ValueError(
            f"tuning needs validation interactions, but the split '{split.description}' has none; "
            "raise its validation_fraction"
        )
    users = sampled_users(split.validation)
    asked = split.validation.select(np.isin(split.validation.user_ids, users))
    scores: dict[Baseline, float] = {}
    memory: dict[Any, Any] = {}

    def judge(candidate: Baseline) -> None:
        if candidate in scores:
            return
        as_of = split.validation_time
        if isinstance(candidate, PCTM):
            fitted = candidate.fit(split.train, as_of=as_of, memory=memory)
        else:
            fitted = candidate.fit(split.train, as_of=as_of)
        found = evaluate(fitted, test=asked, seen=split.train, protocol=protocol)
        scores[candidate] = found.mean(metric)

    for candidate in candidates:
        judge(candidate)
    tuned = Tuned(scores)
    steps = FINER.get(type(candidates[0]), lambda _best: ())(tuned.best)
    for options in steps if len(candidates) > 1 else ():
        best: Any = tuned.best
        for name, values in options.items():
            for value in values:
                judge(replace(best, **{name: value}))
    return tuned


def sampled_users(validation: Interactions, seed: int = 0) -> NDArray[np.int64]:
    """Return the users of validation, a seeded sample where they are many."""
    users = np.unique(validation.user_ids)
    most = min(MOST_USERS, max(LEAST_USERS, MOST_SCORES // validation.n_items))
    if len(users) > most:
        users = np.sort(np.random.default_rng(seed).choice(users, most, replace=False))
    return users
