"""The first places by inner product, exact, at about the speed of a float32 matrix product.

Scores are made in float32, in tiles of users and items that stay in the cache, and are not kept.
How far rounding can carry such a score from the exact one is bounded, so that most items are out
of the question at once; the few that are not get exact scores.

Shapes: U users, I items, D width, T items of a tile, G groups of them, K places, P candidates,
W most candidates of a user.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_ftmamba.ranking import top_k

USERS_AT_ONCE = 512
TILE_SIZE = 2048
"""Items of a tile; a multiple of it where many places are asked for."""

GROUP_SIZE = 32
"""Items of a tile whose highest score is looked at first."""

MOST_CANDIDATES = 64
"""For each place; a user with more has too many equal scores for this way."""

MOST_HITS = 1 / 16
"""For each place of a tile; more, and the threshold is raised first."""

LARGEST_SCORE = 1e30
UNIT = 2.0**-24
SMALLEST_STEP = 2.0**-149

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and item ids, as many of each; a row counts the users asked about."""


def first_places(
    users_UD: Tensor, items_ID: Tensor, k: int, hidden: Pairs, *, longest: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the items (U, K) of the highest inner products, and for which users they are known.

    A score is an inner product summed in float64 and rounded to float32; equal scores go to the
    item of the lower id. The rows of the other users mean nothing: they have fewer than K items
    left, so many nearly equal scores that all would have to be compared, or too large numbers.

    Args:
        users_UD: float64, on the CPU.
        items_ID: float32, on the CPU, no fewer than `smallest_catalogue(k)`.
        k: how many.
        hidden: pairs that are never recommended.
        longest: `longest_of(items_ID)`.
    """
    error_U = rounding_errors(users_UD, longest)
    size = tile_size(k)
    search = _Search(users_UD.float(), k, size, margin_U=2 * error_U)
    search.give_up(~(error_U < LARGEST_SCORE * UNIT))
    starts = range(0, len(items_ID), size)
    for start, places in zip(starts, _places_by_tile(hidden, starts), strict=True):
        search.scan(items_ID[start : start + size], start, places)
    rows_P, items_P, rough_P = search.candidates()
    exact_P = _inner_products(users_UD, items_ID, rows_P, items_P)
    if (np.abs(exact_P - rough_P) > error_U[rows_P]).any():
        # The bound is of float32. This matrix product was told to be less precise.
        search.give_up(np.ones(len(users_UD), bool))
    return _first_of_each(rows_P, items_P, exact_P, (len(users_UD), k)), search.is_sure_U


def tile_size(k: int) -> int:
    """Return how many items make a tile: its groups are twice as many as the places or more."""
    return -(-2 * k * GROUP_SIZE // TILE_SIZE) * TILE_SIZE


def smallest_catalogue(k: int) -> int:
    """Return for how many items this way gains something."""
    return 2 * tile_size(k)


def longest_of(items_ID: Tensor) -> float:
    """Return the greatest Euclidean length of an item."""
    lengths_I = torch.linalg.vector_norm(items_ID, dim=1, dtype=torch.float64)
    return float(lengths_I.max())


def rounding_errors(users_UD: Tensor, longest: float) -> NDArray[np.float64]:
    """Bound the distance (U,) of a float32 score, however it is summed, from the exact one.

    An inner product of D terms is off by at most D units of |u| |v| (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1). Rounding u, v, the exact score and the
    threshold, and terms of second order, take less than eight more.
    """
    width = users_UD.shape[1]
    lengths_U = torch.linalg.vector_norm(users_UD, dim=1).numpy()
    errors_U: NDArray[np.float64] = (width + 8) * (UNIT * longest * lengths_U + SMALLEST_STEP)
    return errors_U


class _Search:
    """What some tiles tell of each user's first places.

    Attributes:
        is_sure_U: False where the search has been given up.
    """

    def __init__(self, users_UD: Tensor, k: int, size: int, margin_U: NDArray[np.float64]) -> None:
        n_users, n_groups = len(users_UD), size // GROUP_SIZE
        self._users_UD, self._k, self._margin_U1 = users_UD, k, margin_U[:, None]
        self._scores_UT = torch.empty(n_users, size)
        self._highest_UG = torch.empty(n_users, n_groups)
        self._best_UK = np.full((n_users, k), -np.inf, np.float32)
        self._threshold_U1 = np.full((n_users, 1), -np.inf, np.float32)
        self._n_found_U = np.zeros(n_users, np.int64)
        self._found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        self.is_sure_U = np.ones(n_users, bool)

    def give_up(self, is_over_U: NDArray[np.bool_]) -> None:
        """Look no further for some users."""
        self.is_sure_U &= ~is_over_U
        # Nothing is as high as NaN, not even infinity.
        self._threshold_U1[is_over_U] = np.nan
        self._margin_U1[is_over_U] = 0

    def scan(self, items_TD: Tensor, start: int, hidden_places: NDArray[np.int64]) -> None:
        """Add what a tile may have for the first places; its first item has the id `start`."""
        n_items, n_groups = len(items_TD), self._highest_UG.shape[1]
        torch.mm(self._users_UD, items_TD.T, out=self._scores_UT[:, :n_items])
        self._scores_UT[:, n_items:] = -torch.inf
        scores = self._scores_UT.numpy()
        scores.reshape(-1)[hidden_places] = -np.inf
        # A group is every `n_groups`-th item: so the highest of many groups are found at once.
        by_group = self._scores_UT.view(-1, GROUP_SIZE, n_groups)
        torch.amax(by_group, 1, out=self._highest_UG)
        rows, groups = np.divmod(self._hits(), n_groups)
        members = by_group.numpy()[rows, :, groups]
        hits = np.flatnonzero(members >= self._threshold_U1[rows])
        hit, member = np.divmod(hits, GROUP_SIZE)
        rows_P, items_P = rows[hit], start + member * n_groups + groups[hit]
        self._found.append((rows_P, items_P, members.reshape(-1)[hits]))
        self._n_found_U += np.bincount(rows_P, minlength=len(self._n_found_U))
        self.give_up(self._n_found_U > MOST_CANDIDATES * self._k)

    def _hits(self) -> NDArray[np.int64]:
        """Return the places, row after row, of the groups that reach the threshold."""
        highest_UG = self._highest_UG.numpy()
        is_hit_UG = highest_UG >= self._threshold_U1
        if np.count_nonzero(is_hit_UG) > MOST_HITS * self._best_UK.size:
            # The K-th highest of different groups is no higher than the K-th highest of all.
            best = np.sort(np.concatenate([self._best_UK, highest_UG], axis=1), axis=1)
            self._best_UK = best[:, -self._k :]
            self._threshold_U1 = (self._best_UK[:, :1] - self._margin_U1).astype(np.float32)
            self.give_up(~self.is_sure_U)
            is_hit_UG = highest_UG >= self._threshold_U1
        return np.flatnonzero(is_hit_UG)

    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return row, item and rough score of what may be among the first, by row, then item."""
        self.give_up(self._threshold_U1[:, 0] == -np.inf)
        rows, items, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        places = np.flatnonzero(scores >= self._threshold_U1[rows, 0])
        places = places[np.lexsort((items[places], rows[places]))]
        return rows[places], items[places], scores[places]


def _places_by_tile(hidden: Pairs, starts: range) -> list[NDArray[np.int64]]:
    """Return where each tile's hidden pairs lie in its flattened scores."""
    rows, item_ids = hidden
    tiles, columns = np.divmod(item_ids, starts.step)
    # Integers of 16 bits are sorted several times faster; there are never so many tiles.
    tiles = tiles.astype(np.uint16)
    order = np.argsort(tiles, kind="stable")
    places = (rows * starts.step + columns)[order]
    return np.split(places, np.searchsorted(tiles[order], np.arange(1, len(starts))))


def _inner_products(
    users_UD: Tensor, items_ID: Tensor, rows_P: NDArray[np.int64], items_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    users_PD = users_UD.index_select(0, torch.from_numpy(rows_P))
    items_PD = items_ID.index_select(0, torch.from_numpy(items_P)).double()
    products: NDArray[np.float64] = (
        torch.bmm(users_PD[:, None], items_PD[:, :, None]).view(-1).numpy()
    )
    return products


def _first_of_each(
    rows_P: NDArray[np.int64],
    items_P: NDArray[np.int64],
    scores_P: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the items (U, K) of the highest scores in each row; pairs by row, then item."""
    n_users, k = shape
    counts_U = np.bincount(rows_P, minlength=n_users)
    places_P = np.arange(len(rows_P)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
    width = max(k, int(counts_U.max()))
    scores_UW = np.full((n_users, width), -np.inf, np.float32)
    items_UW = np.zeros((n_users, width), np.int64)
    scores_UW[rows_P, places_P] = scores_P
    items_UW[rows_P, places_P] = items_P
    _, places_UK = top_k(torch.from_numpy(scores_UW), k)
    return np.take_along_axis(items_UW, places_UK.numpy(), axis=1)
