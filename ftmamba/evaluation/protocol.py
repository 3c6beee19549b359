"""The question that every model is asked, and how a model answers.

Shapes: U users, I items, D width of an embedding, K ranks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.interactions import ItemsByUser
from ftmamba.evaluation.inner_products import Pairs, longest_of, smallest_catalogue, top_items


class Scorer(TypingProtocol):
    """A fitted model, as the evaluation uses it."""

    def scores(self, user_ids: NDArray[np.int64]) -> NDArray[np.float32] | Tensor:
        """Return the scores (U, I) of the whole catalogue, the higher the better.

        Minus infinity means never to be recommended; NaN is an error.
        """


@dataclass(frozen=True)
class Protocol:
    """The question: with which of all items will these users interact?

    The whole catalogue is ranked; ties go to the item of the lower id.

    Attributes:
        k: lengths of the list of recommendations.
        mask_seen: do not recommend a user's seen items.
    """

    k: tuple[int, ...] = (5, 10)
    mask_seen: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", tuple(sorted(set(self.k))))
        if not self.k or any(
            isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.k
        ):
            raise ValueError(f"protocol: k must be whole numbers >= 1, got {self.k}")

    def describe(self, n_items: int) -> str:
        """Return the protocol in words, for the caption of a table."""
        masked = "masked" if self.mask_seen else "not masked"
        return f"full ranking of {n_items} items, seen items {masked}, ties to the lower item id"


@dataclass(frozen=True)
class EmbeddingScorer:
    """Inner products of the embeddings of a two-tower model, over its temperature.

    They are summed in float64 and rounded once, so a score depends neither on the number of users
    asked at once nor on the index of an item in the catalogue. The evaluation calls `top_items`,
    which computes few of the scores so exactly.

    Attributes:
        users: (U, D), embedding of every user, in the order of the table of users.
        items: (I, D), embedding of every item.
        temperature: positive; does not change a ranking.
        seen: each user's seen items; None where they do not change a score.
        repeat_bias: added to the inner product of a user and each of the user's seen items.
    """

    users: Tensor
    items: Tensor
    temperature: float = 1.0
    seen: ItemsByUser | None = None
    repeat_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.users.shape[1:] != self.items.shape[1:]:
            raise ValueError(
                "embeddings of users and items must have the same width, got shapes "
                f"{tuple(self.users.shape)} and {tuple(self.items.shape)}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        object.__setattr__(self, "users", self.users.detach())
        object.__setattr__(self, "items", self.items.detach())

    def scores(self, user_ids: NDArray[np.int64]) -> Tensor:
        scores_UI = self._queries(user_ids) @ self._exact_items.T
        if self.seen is not None:
            rows, item_ids = (torch.from_numpy(one) for one in self.seen.pairs(user_ids))
            # A repeated pair writes the same number twice.
            bias = self.repeat_bias / self.temperature
            scores_UI[rows, item_ids] = scores_UI[rows, item_ids] + bias
        return scores_UI.float()

    def can_search(self, k: int) -> bool:
        """Return whether `top_items` applies: it is faster than all scores, and as exact."""
        return (
            self.seen is None
            and self.items.dtype == torch.float32
            and self.items.device.type == self.users.device.type == "cpu"
            and len(self.items) >= smallest_catalogue(k)
        )

    def top_items(
        self, user_ids: NDArray[np.int64], k: int, masked: Pairs
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the items (U, K) that `scores` ranks first, and for which users they are sure.

        Args:
            user_ids: rows of the users.
            k: length of the lists.
            masked: indices into `user_ids`, and items never recommended to these users.
        """
        return top_items(self._queries(user_ids), self.items, k, masked, longest=self._longest)

    def _queries(self, user_ids: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(user_ids).to(self.users.device)
        return self.users[rows].double() / self.temperature

    @cached_property
    def _longest(self) -> float:
        return longest_of(self.items)

    @cached_property
    def _exact_items(self) -> Tensor:
        return self.items.double()
