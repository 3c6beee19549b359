"""What a step minimises: from a batch of interactions to the loss.

Shapes: B interactions of this process, M items of the batch, I items of the catalogue,
P pairs, W popularity columns.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from ftmamba.data.arrow_tensors import read_tensors
from ftmamba.data.encoded import EncodedData
from ftmamba.losses import (
    KnownPositives,
    all_gather_with_gradient,
    bce_loss,
    full_mse_loss,
    full_softmax_loss,
    in_batch_loss,
    mse_loss,
    smallest_of_all_ranks,
    uniform_negatives,
)
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.embedding import PairEmbedder

Batch = Mapping[str, Tensor]
Objective = Callable[[Batch, int], Tensor]
"""Mean loss of this process's interactions at an optimizer step."""


def make_objective(
    recipe: TrainingRecipe,
    embedder: PairEmbedder,
    *,
    rank: int,
    seed: int,
    known: KnownPositives | None,
) -> Objective:
    """Build the objective that the recipe names."""
    if recipe.loss == "in_batch":
        log_q = log_sampling_probability(embedder.data) if recipe.log_q else None
        return InBatchObjective(embedder, rank, log_q, known)
    if recipe.loss == "full_softmax":
        return FullSoftmaxObjective(
            CatalogueEmbedder(embedder),
            known,
            recipe.user_weight_exponent,
            n_sampled=recipe.n_sampled_items,
            seed=seed,
        )
    if recipe.loss == "full_mse":
        return FullMSEObjective(
            CatalogueEmbedder(embedder), recipe.positive_weight, recipe.embedding_l2
        )
    pair_loss = {"bce": bce_loss, "mse": mse_loss}[recipe.loss]
    return PairObjective(embedder, pair_loss, recipe.n_negatives, seed, known)


def log_sampling_probability(data: EncodedData) -> Tensor:
    """Return ln q (I,): how often each item is an interaction's positive, hence in a batch."""
    counts_I = torch.as_tensor(data.item_counts, dtype=torch.float64)
    return (counts_I / counts_I.sum()).log().float()


def known_positives(data: EncodedData) -> KnownPositives:
    """Gather the pairs of all training interactions."""
    columns = read_tensors(data.interactions)
    return KnownPositives(columns["user_ids"], columns["item_ids"], data.n_items)


@dataclass(frozen=True)
class InBatchObjective:
    """Every other item in the batch of any process is a negative."""

    embedder: PairEmbedder
    rank: int
    log_q: Tensor | None
    known: KnownPositives | None

    def __call__(self, batch: Batch, step: int) -> Tensor:  # noqa: ARG002
        device = self.embedder.device
        users_BD, items_BD = self.embedder.embed(
            batch["user_ids"], batch["item_ids"], batch.get("popularity")
        )
        first_place = self.rank * len(users_BD)
        item_ids_M = all_gather_with_gradient(batch["item_ids"].to(device))
        log_q_M = None if self.log_q is None else self.log_q[item_ids_M.cpu()].to(device)
        known_BM = None
        if self.known is not None:
            known_BM = self.known.contain(batch["user_ids"][:, None], item_ids_M.cpu()).to(device)
        return in_batch_loss(
            users_BD,
            all_gather_with_gradient(items_BD),
            positives_B=first_place + torch.arange(len(users_BD), device=device),
            item_ids_M=item_ids_M,
            log_q_M=log_q_M,
            known_BM=known_BM,
        )


@dataclass(frozen=True)
class CatalogueEmbedder:
    """Embeds the users of a batch and every item.

    Popularity columns are as of the earliest interaction of the global batch: nothing of the
    future is in them. So that they are of the present too, let a batch be a stretch of time
    (`batch_order: time`); every item is then seen as it was at that moment, which is how the
    catalogue is seen when recommending.
    """

    embedder: PairEmbedder

    def embed(self, batch: Batch, item_ids_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and items (M, D), by default all."""
        items = self._catalogue(batch) if item_ids_M is None else self._items(batch, item_ids_M)
        return self.embedder.embed_catalogue(batch["user_ids"], items)

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
        catalogue = self.embedder.data.catalogue(None)
        on_device: Mapping[str, Tensor] = send_to_device(dict(catalogue), self.embedder.device)
        return on_device

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

    def __call__(self, batch: Batch, step: int) -> Tensor:
        item_ids_M, log_weights_M = self._candidates(batch, step)
        users_BD, items_MD = self.catalogue.embed(batch, item_ids_M if self.n_sampled else None)
        device, known_BM = users_BD.device, None
        if self.known is not None:
            known_BM = self.known.of_users(batch["user_ids"])[:, item_ids_M].to(device)
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

    def __call__(self, batch: Batch, step: int) -> Tensor:  # noqa: ARG002
        users_BD, catalogue_ID = self.catalogue.embed(batch)
        counts_B = self.catalogue.user_counts[batch["user_ids"]]
        return full_mse_loss(
            users_BD,
            catalogue_ID,
            batch["item_ids"].to(users_BD.device),
            user_counts_B=counts_B.to(users_BD.device),
            positive_weight=self.positive_weight,
            l2=self.l2,
        )


@dataclass(frozen=True)
class PairObjective:
    """Interactions against uniform negatives, pair by pair."""

    embedder: PairEmbedder
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    n_negatives: int
    seed: int
    known: KnownPositives | None

    def __call__(self, batch: Batch, step: int) -> Tensor:
        device, data = self.embedder.device, self.embedder.data
        n_rows = len(batch["user_ids"])
        negatives = uniform_negatives(
            batch["rows"].numpy(),
            self.n_negatives,
            n_items=data.n_items,
            seed=(self.seed, step),
        )
        negative_ids_M = torch.from_numpy(negatives.reshape(-1))
        item_ids_P = torch.cat([batch["item_ids"], negative_ids_M])
        row_P = torch.cat(
            [torch.arange(n_rows), torch.arange(n_rows).repeat_interleave(self.n_negatives)]
        )
        users_BD, items_PD = self.embedder.embed(
            batch["user_ids"], item_ids_P, self._popularity(batch, item_ids_P, row_P)
        )
        scores_P = (users_BD[row_P.to(device)] * items_PD).sum(-1)
        labels_P = torch.zeros_like(scores_P)
        labels_P[:n_rows] = 1
        included_P = None
        if self.known is not None:
            included_P = ~self.known.contain(batch["user_ids"][row_P], item_ids_P)
            included_P[:n_rows] = True
            included_P = included_P.to(device)
        return self.loss(scores_P, labels_P, included_P)

    def _popularity(self, batch: Batch, item_ids_P: Tensor, row_P: Tensor) -> Tensor | None:
        """Return popularity (P, W) of positives and negatives at the interaction's own time."""
        if "popularity" not in batch:
            return None
        data, n_rows = self.embedder.data, len(batch["popularity"])
        popularity = data.popularity_at(
            item_ids_P[n_rows:].numpy(), batch["times"][row_P[n_rows:]].numpy()
        )
        return torch.cat([batch["popularity"], torch.from_numpy(popularity)])
