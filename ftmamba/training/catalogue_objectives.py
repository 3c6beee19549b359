"""Objectives over the whole catalogue, or a sample of it that stands for the whole.

Shapes: B interactions of this process, M items embedded in a step, I items of the catalogue,
U users, D embedding, W popularity columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ftmamba.data.read_ahead import to_device
from ftmamba.losses import (
    KnownPositives,
    all_gather_with_gradient,
    full_mse_loss,
    full_softmax_loss,
    smallest_of_all_ranks,
)
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.feed import Batch, Prepared


@dataclass(frozen=True)
class CatalogueEmbedder:
    """Embeds the users of a batch and every item.

    Popularity columns are as of the earliest interaction of the global batch: nothing of the
    future is in them. So that they are of the present too, let a batch be a stretch of time
    (`batch_order: time`); every item is then seen as it was at that moment, which is how the
    catalogue is seen when recommending.
    """

    embedder: PairEmbedder

    def prepare(self, batch: Batch, step: int) -> Prepared:
        if self.embedder.data.histories is None:
            return Prepared(batch, step, self.embedder.gather_users(batch["user_ids"]))
        return Prepared(batch, step, self.embedder.gather_prefixes(batch))

    def embed(self, prepared: Prepared, item_ids_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and items (M, D), by default all."""
        batch = prepared.batch
        items = self._catalogue(batch) if item_ids_M is None else self._items(batch, item_ids_M)
        return self.embedder.embed({**prepared.inputs, **items})

    def _catalogue(self, batch: Batch) -> Mapping[str, Tensor]:
        if "popularity" not in batch:
            return self._timeless
        return self.embedder.data.catalogue(self._earliest(batch))

    def _items(self, batch: Batch, item_ids_M: Tensor) -> Mapping[str, Tensor]:
        """Return those items alone, as `_catalogue` has them, at no cost for the others."""
        if "popularity" not in batch:
            return {name: rows[item_ids_M.to(rows.device)] for name, rows in self._timeless.items()}
        data, times_M = self.embedder.data, torch.full_like(item_ids_M, self._earliest(batch))
        popularity_MW = data.popularity_at(item_ids_M.numpy(), times_M.numpy())
        return data.gather_items(item_ids_M, torch.from_numpy(popularity_MW))

    def _earliest(self, batch: Batch) -> int:
        return smallest_of_all_ranks(batch["times"].to(self.embedder.device))

    @cached_property
    def _timeless(self) -> Mapping[str, Tensor]:
        return to_device(self.embedder.data.catalogue(None), self.embedder.device)

    @cached_property
    def user_counts(self) -> Tensor:
        """Training interactions of each user (U,)."""
        user_ids, _ = self.embedder.data.training_pairs()
        return torch.bincount(user_ids, minlength=self.embedder.data.n_users)


@dataclass(frozen=True)
class FullSoftmaxObjective:
    """Every other item of the catalogue is a negative, known positives apart if asked.

    With `n_sampled`, a step embeds the items of the global batch and so many others, drawn
    uniformly; each of those stands for several, so that the sum over the catalogue is estimated
    without bias. As many as there are, and the loss is the exact one.
    """

    catalogue: CatalogueEmbedder
    known: KnownPositives | None = None
    user_weight_exponent: float = 0.0
    n_sampled: int = 0
    seed: int = 0

    def prepare(self, batch: Batch, step: int) -> Prepared:
        return self.catalogue.prepare(batch, step)

    def __call__(self, prepared: Prepared) -> Tensor:
        batch = prepared.batch
        item_ids_M, log_weights_M = self._candidates(batch, prepared.step)
        users_BD, items_MD = self.catalogue.embed(prepared, item_ids_M if self.n_sampled else None)
        device, known_BM = users_BD.device, None
        if self.known is not None:
            known_BM = self.known.among(batch["user_ids"], item_ids_M).to(device)
        return full_softmax_loss(
            users_BD,
            items_MD,
            torch.searchsorted(item_ids_M, batch["item_ids"]).to(device),
            log_weights_I=log_weights_M.to(device),
            known_BI=known_BM,
            weights_B=self._user_weights[batch["user_ids"]].to(device),
        )

    def _candidates(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return the ids (M,), ascending, and the log of how many items each stands for."""
        n_items = self.catalogue.embedder.data.n_items
        if not self.n_sampled:
            return torch.arange(n_items), torch.zeros(n_items)
        gathered = all_gather_with_gradient(batch["item_ids"].to(self.catalogue.embedder.device))
        is_own_I = torch.zeros(n_items, dtype=torch.bool)
        is_own_I[gathered.cpu()] = True
        others = (~is_own_I).nonzero().flatten().numpy()
        generator = np.random.default_rng((self.seed, step))
        n_drawn = min(self.n_sampled, len(others))
        drawn = torch.from_numpy(generator.choice(others, n_drawn, replace=False))
        item_ids_M = torch.cat([is_own_I.nonzero().flatten(), drawn]).sort().values
        stands_for = math.log(len(others) / n_drawn) if n_drawn else 0.0
        return item_ids_M, torch.where(is_own_I[item_ids_M], 0.0, stands_for)

    @cached_property
    def _user_weights(self) -> Tensor:
        """Return count^-exponent of each user (U,), scaled to mean 1 over the interactions."""
        counts_U = self.catalogue.user_counts.clamp(min=1).double()
        weights_U = counts_U**-self.user_weight_exponent
        mean = (weights_U * self.catalogue.user_counts).sum() / self.catalogue.user_counts.sum()
        return (weights_U / mean).float()


@dataclass(frozen=True)
class FullMSEObjective:
    """Every pair of a user and an item has a label, 1 for interactions and 0 for the others."""

    catalogue: CatalogueEmbedder
    positive_weight: float
    l2: float

    def prepare(self, batch: Batch, step: int) -> Prepared:
        return self.catalogue.prepare(batch, step)

    def __call__(self, prepared: Prepared) -> Tensor:
        batch = prepared.batch
        users_BD, catalogue_ID = self.catalogue.embed(prepared)
        counts_B = self.catalogue.user_counts[batch["user_ids"]]
        return full_mse_loss(
            users_BD,
            catalogue_ID,
            batch["item_ids"].to(users_BD.device),
            user_counts_B=counts_B.to(users_BD.device),
            positive_weight=self.positive_weight,
            l2=self.l2,
        )
