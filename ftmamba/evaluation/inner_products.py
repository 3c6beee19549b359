"""The items of the highest inner products, exact, at about the speed of a float32 matrix product.

Scores are computed in float32, in tiles of users and items that stay in the cache, and not kept.
The distance of such a score from the exact one is bounded, which rules out most items at once; the
few others get exact scores. A full float64 product gives the same and takes several times as long.

Shapes: U users, I items, D width, T items of a tile, G groups of them, K ranks, P candidates,
W most candidates of a user.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_ftmamba.catalogue import top_k

USERS_AT_ONCE = 512
TILE_SIZE = 2048
"""Items of a tile; a multiple of it for long lists."""

GROUP_SIZE = 32
"""Items of a tile of which the highest score is compared first."""

MOST_CANDIDATES = 64
"""For each rank; a user with more has too many equal scores for this search."""

MOST_HITS = 1 / 16
"""For each rank of a tile; with more, the threshold is raised first."""

LARGEST_SCORE = 1e30
SPARE_TERMS = 8
UNIT = 2.0**-24
SMALLEST_STEP = 2.0**-149

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and item ids, equally many; a row is an index into the users asked about."""


def top_items(
    users_UD: Tensor, items_ID: Tensor, k: int, masked: Pairs, *, longest: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the items (U, K) of the highest inner products, and for which users they are sure.

    A score is an inner product summed in float64 and rounded to float32; equal scores go to the
    item of the lower id. Users are not sure, and their rows without meaning, if they have fewer
    than K items left, too many nearly equal scores, or too large numbers.

    Args:
        users_UD: float64, on the CPU.
        items_ID: float32, on the CPU, no fewer than `smallest_catalogue(k)`.
        k: length of the lists.
        masked: pairs that are never recommended.
        longest: `longest_of(items_ID)`.
    """
    error_U = rounding_errors(users_UD, longest)
    size = tile_size(k)
    search = _Search(users_UD.float(), k, size, margin_U=2 * error_U)
    search.give_up(~(error_U < LARGEST_SCORE * UNIT))
    starts = range(0, len(items_ID), size)
    for start, masked_here in zip(starts, _masked_by_tile(masked, starts), strict=True):
        search.scan(items_ID[start : start + size], start, masked_here)
    rows_P, items_P, rough_P = search.candidates()
    users_PD = users_UD.index_select(0, torch.from_numpy(rows_P))
    items_PD = items_ID.index_select(0, torch.from_numpy(items_P)).double()
    exact_P = torch.bmm(users_PD[:, None], items_PD[:, :, None]).view(-1).numpy()
    if (np.abs(exact_P - rough_P) > error_U[rows_P]).any():
        # The bound is of float32, and torch is set to a less precise matrix product.
        search.give_up(np.ones(len(users_UD), bool))
    return _first_of_each(rows_P, items_P, exact_P, (len(users_UD), k)), search.is_sure_U


def tile_size(k: int) -> int:
    """Return the number of items of a tile, which has at least twice as many groups as ranks."""
    return -(-2 * k * GROUP_SIZE // TILE_SIZE) * TILE_SIZE


def smallest_catalogue(k: int) -> int:
    """Return from how many items on this search is faster."""
    return 2 * tile_size(k)


def longest_of(items_ID: Tensor) -> float:
    """Return the greatest Euclidean length of an item."""
    lengths_I = torch.linalg.vector_norm(items_ID, dim=1, dtype=torch.float64)
    return float(lengths_I.max())


def rounding_errors(users_UD: Tensor, longest: float) -> NDArray[np.float64]:
    """Bound the distance (U,) of a float32 score, however it is summed, from the exact one.

    An inner product of D terms is off by at most D units of |u| |v| (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1). Rounding u, v, the exact score and the
    threshold, and terms of second order, take less than `SPARE_TERMS` more.
    """
    width = users_UD.shape[1]
    lengths_U = torch.linalg.vector_norm(users_UD, dim=1).numpy()
    errors_U: NDArray[np.float64] = (width + SPARE_TERMS) * (
        UNIT * longest * lengths_U + SMALLEST_STEP
    )
    return errors_U


class _Search:
    """The candidates of each user in the tiles scanned so far.

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
        """Stop the search for some users."""
        self.is_sure_U &= ~is_over_U
        # Nothing is as high as NaN, not even infinity.
        self._threshold_U1[is_over_U] = np.nan
        self._margin_U1[is_over_U] = 0

    def scan(self, items_TD: Tensor, start: int, masked: NDArray[np.int64]) -> None:
        """Add the candidates of a tile.

        Args:
            items_TD: the tile.
            start: id of its first item.
            masked: indices of the masked pairs in the flattened scores of the tile.
        """
        n_items, n_groups = len(items_TD), self._highest_UG.shape[1]
        torch.mm(self._users_UD, items_TD.T, out=self._scores_UT[:, :n_items])
        self._scores_UT[:, n_items:] = -torch.inf
        scores = self._scores_UT.numpy()
        scores.ravel()[masked] = -np.inf
        # A group is every `n_groups`-th item, so the highest of many groups are found at once.
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
        """Return the indices, row after row, of the groups that reach the threshold."""
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
        """Return row, item and rough score of the candidates, by row, then item."""
        self.give_up(self._threshold_U1[:, 0] == -np.inf)
        rows, items, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        kept = np.flatnonzero(scores >= self._threshold_U1[rows, 0])
        kept = kept[np.lexsort((items[kept], rows[kept]))]
        return rows[kept], items[kept], scores[kept]


def _masked_by_tile(masked: Pairs, starts: range) -> list[NDArray[np.int64]]:
    """Return the indices of each tile's masked pairs in its flattened scores."""
    rows, item_ids = masked
    tiles, columns = np.divmod(item_ids, starts.step)
    # Integers of 16 bits are sorted several times faster; there are never so many tiles.
    tiles = tiles.astype(np.uint16)
    order = np.argsort(tiles, kind="stable")
    indices = (rows * starts.step + columns)[order]
    return np.split(indices, np.searchsorted(tiles[order], np.arange(1, len(starts))))


def _first_of_each(
    rows_P: NDArray[np.int64],
    items_P: NDArray[np.int64],
    scores_P: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the items (U, K) of the highest scores in each row; pairs by row, then item."""
    n_users, k = shape
    counts_U = np.bincount(rows_P, minlength=n_users)
    column_P = np.arange(len(rows_P)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
    width = max(k, int(counts_U.max()))
    scores_UW = np.full((n_users, width), -np.inf, np.float32)
    items_UW = np.zeros((n_users, width), np.int64)
    scores_UW[rows_P, column_P] = scores_P
    items_UW[rows_P, column_P] = items_P
    _, columns_UK = top_k(torch.from_numpy(scores_UW), k)
    return np.take_along_axis(items_UW, columns_UK.numpy(), axis=1)
