# ruff: noqa: E501
"""What a step minimises: from a batch of interactions to the loss.

Shapes: B interactions of this process, M items of the batch, P pairs, W popularity columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ftmamba.data.arrow_files import read_tensors
from ftmamba.data.encoded import EncodedData
from ftmamba.losses import (
    KnownPositives,
    all_gather_with_gradient,
    bce_loss,
    in_batch_loss,
    mse_loss,
    uniform_negatives,
)
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.catalogue_objectives import (
    CatalogueEmbedder,
    FullMSEObjective,
    FullSoftmaxObjective,
)
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.feed import Batch, Objective, Prepared
from ftmamba.training.sequence_objectives import make_sequence_objective


def make_objective(
    recipe: TrainingRecipe,
    embedder: PairEmbedder,
    *,
    rank: int,
    seed: int,
    known: KnownPositives | None,
    in_bfloat16: bool = False,
) -> Objective:
    """Build the objective that the recipe names; `in_bfloat16` is how products are computed."""
    _check_repeats(recipe, learned=embedder.base.repeat_bias is not None)
    if recipe.sequences:
        return make_sequence_objective(
            recipe, embedder, rank=rank, seed=seed, in_bfloat16=in_bfloat16
        )
    _check_rows(recipe, embedder.data)
    if recipe.loss.name == "in_batch":
        log_q = log_sampling_probability(embedder.data) if recipe.loss.log_q else None
        return InBatchObjective(embedder, rank, log_q, known)
    if recipe.loss.name == "full_softmax":
        return FullSoftmaxObjective(
            CatalogueEmbedder(embedder),
            known,
            recipe.loss.user_weight_exponent,
            n_sampled=recipe.loss.n_sampled_items,
            seed=seed,
        )
    if recipe.loss.name == "full_mse":
        return FullMSEObjective(
            CatalogueEmbedder(embedder), recipe.loss.positive_weight, recipe.loss.l2
        )
    pair_loss = {"bce": bce_loss, "mse": mse_loss}[recipe.loss.name]
    return PairObjective(embedder, pair_loss, recipe.loss.n_negatives, seed, known)


def _check_repeats(recipe: TrainingRecipe, *, learned: bool) -> None:
    """Check that a bias for repeats would be learned."""
    if not learned:
        return
    if not recipe.sequences or recipe.loss.name != "full_softmax":
        raise ValueError(
            "a model with repeat_bias learns it with training.sequences 'newest' or 'every' and "
            f"loss 'full_softmax', got {recipe.sequences!r} and {recipe.loss.name!r}; change them or "
            "remove repeat_bias"
        )
    if recipe.loss.mask_history:
        raise ValueError(
            "mask_history leaves out what the user took before, of which repeat_bias is learned; "
            "remove one of the two"
        )


def _check_rows(recipe: TrainingRecipe, data: EncodedData) -> None:
    """Check a recipe whose rows are interactions."""
    if recipe.loss.name in ("sampled_softmax", "gbce"):
        raise ValueError(
            f"training.loss {recipe.loss.name!r} is of sequences; set training.sequences to 'newest' or "
            "'every', or choose another loss"
        )
    catalogue_is_there = (
        recipe.loss.name in ("full_softmax", "full_mse") and not recipe.loss.n_sampled_items
    )
    if data.histories is not None and not catalogue_is_there:
        raise ValueError(
            "users with a history need training.sequences, or the loss full_softmax or full_mse "
            f"with n_sampled_items 0, got {recipe.loss.name!r} with {recipe.loss.n_sampled_items}; set "
            "training.sequences to 'newest' or 'every'"
        )


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

    def prepare(self, batch: Batch, step: int) -> Prepared:
        inputs = self.embedder.gather(batch["user_ids"], batch["item_ids"], batch.get("popularity"))
        return Prepared(batch, step, inputs)

    def __call__(self, prepared: Prepared) -> Tensor:
        device, batch = self.embedder.device, prepared.batch
        users_BD, items_BD = self.embedder.embed(prepared.inputs)
        first_place = self.rank * len(users_BD)
        item_ids_M = all_gather_with_gradient(batch["item_ids"].to(device))
        log_q_M = None if self.log_q is None else self.log_q[item_ids_M.cpu()].to(device)
        known_BM = None
        if self.known is not None:
            known_BM = self.known.among(batch["user_ids"], item_ids_M.cpu()).to(device)
        return in_batch_loss(
            users_BD,
            all_gather_with_gradient(items_BD),
            positives_B=first_place + torch.arange(len(users_BD), device=device),
            item_ids_M=item_ids_M,
            log_q_M=log_q_M,
            known_BM=known_BM,
        )


@dataclass(frozen=True)
class PairObjective:
    """Interactions against uniform negatives, pair by pair."""

    embedder: PairEmbedder
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    n_negatives: int
    seed: int
    known: KnownPositives | None

    def prepare(self, batch: Batch, step: int) -> Prepared:
        n_rows = len(batch["user_ids"])
        negatives = uniform_negatives(
            batch["rows"].numpy(),
            self.n_negatives,
            n_items=self.embedder.data.n_items,
            seed=(self.seed, step),
        )
        item_ids_P = torch.cat([batch["item_ids"], torch.from_numpy(negatives.reshape(-1))])
        row_P = torch.cat(
            [torch.arange(n_rows), torch.arange(n_rows).repeat_interleave(self.n_negatives)]
        )
        popularity_PW = self._popularity(batch, item_ids_P, row_P)
        inputs = {
            **self.embedder.gather(batch["user_ids"], item_ids_P, popularity_PW),
            "row_of_pair": row_P,
        }
        if self.known is not None:
            included_P = ~self.known.contain(batch["user_ids"][row_P], item_ids_P)
            included_P[:n_rows] = True
            inputs["included_pairs"] = included_P
        return Prepared(batch, step, inputs)

    def __call__(self, prepared: Prepared) -> Tensor:
        device, inputs = self.embedder.device, prepared.inputs
        users_BD, items_PD = self.embedder.embed(inputs)
        row_P = inputs["row_of_pair"].to(device, non_blocking=True)
        scores_P = (users_BD[row_P] * items_PD).sum(-1)
        labels_P = torch.zeros_like(scores_P)
        labels_P[: len(users_BD)] = 1
        included_P = None
        if "included_pairs" in inputs:
            included_P = inputs["included_pairs"].to(device, non_blocking=True)
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
