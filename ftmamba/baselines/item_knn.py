"""Item-based neighbours (Sarwar et al. 2001; shrinkage as in Ferrari Dacrema et al. 2019).

Shapes: U users, I items, B items of a block.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ftmamba.baselines.extra import require
from ftmamba.baselines.fitted import (
    FittedBaseline,
    Scores,
    check_positive,
    check_train,
    check_whole,
    with_popularity_for_cold,
)
from ftmamba.baselines.history import history_matrix
from ftmamba.data.interactions import Interactions
from ftmamba.evaluation.ranking import top_k

N_SIMILARITIES_AT_ONCE = 2**24


@dataclass(frozen=True)
class ItemKNN:
    """Score of item j: sum of similarities s_ij over the items i in the user's history.

    s_ij = c_ij / (sqrt(n_i n_j) + shrink), where c_ij users took both and n_i took i; only the
    `n_neighbours` most similar j of each i are kept.

    Attributes:
        n_neighbours: kept of each item.
        shrink: lowers similarities that rest on few users; 0 is the plain cosine.
    """

    n_neighbours: int = 200
    shrink: float = 50.0

    def __post_init__(self) -> None:
        check_whole("item-knn", n_neighbours=self.n_neighbours)
        check_positive("item-knn", n_neighbours=self.n_neighbours)
        if not self.shrink >= 0:
            raise ValueError(f"baseline 'item-knn': shrink must be >= 0, got {self.shrink!r}")

    @property
    def name(self) -> str:
        return "item-kNN"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:  # noqa: ARG002
        check_train(self.name, train)
        history_UI = history_matrix(train, self.name)
        similarity_II = self._similarities(history_UI)

        def score_warm(user_ids: NDArray[np.int64]) -> Scores:
            scores: Scores = (history_UI[user_ids] @ similarity_II).toarray()
            return scores

        return with_popularity_for_cold(self.name, train, score_warm)

    def _similarities(self, history_UI: Any) -> Any:
        """Return a CSR matrix (I, I), a block of rows at a time."""
        sparse = require("scipy.sparse", self.name)
        n_items = history_UI.shape[1]
        norm_I = np.sqrt(np.asarray(history_UI.sum(0)).ravel())
        by_item_UI = history_UI.tocsc()
        step = max(1, N_SIMILARITIES_AT_ONCE // n_items)
        blocks = []
        for start in range(0, n_items, step):
            block = slice(start, start + step)
            counts_BI = (by_item_UI[:, block].T @ history_UI).toarray()
            similarity_BI = counts_BI / (np.outer(norm_I[block], norm_I) + self.shrink + 1e-9)
            rows_B = np.arange(len(similarity_BI))
            similarity_BI[rows_B, rows_B + start] = 0
            blocks.append(sparse.csr_matrix(_keep_highest(similarity_BI, self.n_neighbours)))
        return sparse.vstack(blocks, format="csr")


def _keep_highest(similarity_BI: Scores, k: int) -> Scores:
    """Set all but the `k` highest of each row to 0."""
    if k >= similarity_BI.shape[1]:
        return similarity_BI
    _, ids = top_k(torch.from_numpy(similarity_BI), k)
    kept_BI = np.zeros_like(similarity_BI)
    np.put_along_axis(
        kept_BI, ids.numpy(), np.take_along_axis(similarity_BI, ids.numpy(), axis=1), axis=1
    )
    return kept_BI
