"""What every model is asked, and how a model answers.

Shapes: U users, I items, D width of an embedding, K places.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.interactions import ItemsByUser
from ftmamba.evaluation.inner_products import (
    Pairs,
    first_places,
    longest_of,
    smallest_catalogue,
)


class Scorer(TypingProtocol):
    """A fitted model, seen by the evaluation."""

    def scores(self, user_ids: NDArray[np.int64]) -> NDArray[np.float32] | Tensor:
        """Return the scores (U, I) of the whole catalogue, the higher the better.

        Minus infinity means never to be recommended; NaN is an error.
        """


@dataclass(frozen=True)
class Protocol:
    """The question: which of all items will these users take?

    The whole catalogue is ranked; ties go to the item of the lower id.

    Attributes:
        k: lengths of the list of recommendations.
        mask_seen: leave out what a user is known to have taken before.
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
        """Say the protocol in words, for the caption of a table."""
        masked = "masked" if self.mask_seen else "not masked"
        return f"full ranking of {n_items} items, seen items {masked}, ties to the lower item id"


@dataclass(frozen=True)
class EmbeddingScorer:
    """Inner products of the embeddings of a two-tower model, over its temperature.

    They are summed in float64 and rounded once, so that a score depends neither on the number of
    users asked at once nor on the place of an item in the catalogue. The evaluation asks for
    `first_places`, which need not compute most of the scores so exactly.

    Attributes:
        users: (U, D), embedding of every user, in the order of the table of users.
        items: (I, D), embedding of every item.
        temperature: positive; does not change a ranking.
        repeats: what each user's history has; None where that changes no score.
        repeat_bias: added to the inner product of a user and an item of the user's history.
    """

    users: Tensor
    items: Tensor
    temperature: float = 1.0
    repeats: ItemsByUser | None = None
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
        if self.repeats is not None:
            rows, item_ids = (torch.from_numpy(one) for one in self.repeats.pairs(user_ids))
            # Of an item that is there twice the same number is written twice.
            scores_UI[rows, item_ids] = scores_UI[rows, item_ids] + self._bias
        return scores_UI.float()

    def has_first_places(self, k: int) -> bool:
        """Return whether there is a faster way to the first places than all scores."""
        return (
            self.repeats is None
            and self.items.dtype == torch.float32
            and self.items.device.type == self.users.device.type == "cpu"
            and len(self.items) >= smallest_catalogue(k)
        )

    def first_places(
        self, user_ids: NDArray[np.int64], k: int, hidden: Pairs
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the items (U, K) that `scores` puts first, and for which users they are known.

        Args:
            user_ids: rows of the users.
            k: how many.
            hidden: places in `user_ids`, and the items never recommended to these users.
        """
        queries_UD = self._queries(user_ids)
        return first_places(queries_UD, self.items, k, hidden, longest=self._longest)

    @property
    def _bias(self) -> float:
        return self.repeat_bias / self.temperature

    def _queries(self, user_ids: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(user_ids).to(self.users.device)
        return self.users[rows].double() / self.temperature

    @cached_property
    def _longest(self) -> float:
        return longest_of(self.items)

    @cached_property
    def _exact_items(self) -> Tensor:
        return self.items.double()
