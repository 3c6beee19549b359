"""What a step minimises where users are read as of every event of their histories.

Shapes: B windows, T events, S slots (T + 1), M positions with a target, N items of the step,
I items of the catalogue, D embedding, F event features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ftmamba.data.read_ahead import to_device
from ftmamba.data.sequence_batches import key_of_feature
from ftmamba.losses.distributed import weight_of_rank
from ftmamba.losses.sequences import (
    NegativeSampler,
    Prefixes,
    fused_linear_cross_entropy,
    sequence_gbce,
    sequence_in_batch,
    sequence_sampled_softmax,
)
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.feed import Batch, Inputs, Prepared
from modeling_ftmamba.network import HistoryTokens


class SequenceLoss(Protocol):
    """From the outputs at M positions to their mean loss."""

    def __call__(
        self, positions_MD: Tensor, targets_M: Tensor, items_ND: Tensor, drawn: "Drawn"
    ) -> Tensor:
        """Return the loss; targets are rows of the items."""


@dataclass(frozen=True)
class Drawn:
    """Which items a step knows.

    Attributes:
        prefixes: the items ahead of each position, as places among the N.
        repeat_bias: (1,), what items ahead of a position get, over the temperature; None: nothing.
        item_ids: int64 (N,), rows of the table of items; None: all of them.
        negatives: int64 (K,), which of the N were drawn, with repeats; None: none were.
    """

    prefixes: Prefixes
    repeat_bias: Tensor | None = None
    item_ids: Tensor | None = None
    negatives: Tensor | None = None

    def rows_of(self, values_I: Tensor) -> Tensor:
        """Return the values of the items that the step knows, on their device."""
        return (
            values_I if self.item_ids is None else values_I.to(self.item_ids.device)[self.item_ids]
        )


@dataclass(frozen=True)
class SequenceObjective:
    """What comes next, foretold after every event of a window.

    Attributes:
        embedder: of users and items.
        loss: of the positions.
        whole_catalogue: whether a step embeds every item, or those of its windows and the drawn.
        sampler: draws negatives for all positions of a step together.
        n_negatives: how many.
        rank: of this process, which draws its own.
    """

    embedder: PairEmbedder
    loss: SequenceLoss
    whole_catalogue: bool = True
    sampler: NegativeSampler | None = None
    n_negatives: int = 0
    rank: int = 0

    def prepare(self, batch: Batch, step: int) -> Prepared:
        targets_BS = torch.cat([self._first_targets(batch)[:, None], batch["targets"]], 1)
        places_M = (targets_BS.flatten() >= 0).nonzero().flatten()
        inputs = {
            **self.embedder.data.gather_users(batch["user_ids"]),
            **self._event_features(batch),
            **self._items(batch, targets_BS.flatten()[places_M], step),
            "user_history_lengths": batch["lengths"],
            "places_of_positions": places_M,
        }
        return Prepared(batch, step, inputs)

    def __call__(self, prepared: Prepared) -> Tensor:
        embedder = self.embedder
        inputs = to_device(prepared.inputs, embedder.device)
        records = {name: one for name, one in inputs.items() if name.startswith(("user_", "item_"))}
        if self.whole_catalogue:
            records |= self._catalogue
        output = embedder.model(**records, all_positions=True)
        positions_MD = output.user_embeds.flatten(0, 1)[inputs["places_of_positions"]]
        n_slots = output.user_embeds.shape[1]
        prefixes = Prefixes(
            inputs["user_history_places"],
            windows=inputs["places_of_positions"] // n_slots,
            lengths=inputs["places_of_positions"] % n_slots,
        )
        base = embedder.base
        bias = None if base.repeat_bias is None else base.repeat_bias / base.temperature
        drawn = Drawn(prefixes, bias, inputs.get("ids_of_items"), inputs.get("negatives"))
        loss = self.loss(
            positions_MD / base.temperature, inputs["targets"], output.item_embeds, drawn
        )
        return loss * weight_of_rank(len(positions_MD), embedder.device)

    def _first_targets(self, batch: Batch) -> Tensor:
        """Return what to foretell before any event, where there is something to do it from."""
        if self.embedder.base.user_tower.reads_before_events:
            return batch["first_targets"]
        return torch.full_like(batch["first_targets"], -1)

    def _event_features(self, batch: Batch) -> Inputs:
        """Return what stands beside each event (B, T, F); NaN where the data has none of it."""
        names = self._history.features
        if not names:
            return {}
        absent = torch.full(batch["history_ids"].shape, torch.nan)
        features = [batch.get(key_of_feature(name), absent) for name in names]
        return {"user_event_features": torch.stack(features, -1)}

    def _items(self, batch: Batch, targets_M: Tensor, step: int) -> Inputs:
        """Return the items of a step, and where in them events, targets and negatives are."""
        if self.whole_catalogue:
            return {"user_history_places": batch["history_ids"], "targets": targets_M}
        parts = [batch["history_ids"].flatten(), targets_M]
        if self.sampler is not None:
            parts.append(self.sampler.draw((self.n_negatives,), step, self.rank))
        ids_N, places = np.unique(torch.cat(parts).numpy(), return_inverse=True)
        sizes = [len(one) for one in parts]
        history, targets, *negatives = torch.split(torch.from_numpy(places), sizes)
        return {
            **self.embedder.data.gather_items(torch.from_numpy(ids_N)),
            **dict(zip(["negatives"], negatives, strict=False)),
            "ids_of_items": torch.from_numpy(ids_N),
            "user_history_places": history.view_as(batch["history_ids"]),
            "targets": targets,
        }

    @cached_property
    def _history(self) -> HistoryTokens:
        tokens = self.embedder.base.user_tower.tokenizer.history
        assert tokens is not None
        return tokens

    @cached_property
    def _catalogue(self) -> Mapping[str, Tensor]:
        return to_device(self.embedder.data.catalogue(None), self.embedder.device)


def make_sequence_objective(
    recipe: TrainingRecipe, embedder: PairEmbedder, *, rank: int, seed: int, in_bfloat16: bool
) -> SequenceObjective:
    """Build the objective of a recipe that trains on sequences.

    With `in_bfloat16` the products of the softmax over the catalogue are.

    Raises:
        ValueError: a loss that sequences do not have.
    """
    counts_I = embedder.data.item_counts
    if recipe.loss.name == "full_softmax":
        products_in = torch.bfloat16 if in_bfloat16 else None
        loss = partial(
            _full_softmax, recipe.loss.label_smoothing, recipe.loss.mask_history, products_in
        )
        return SequenceObjective(embedder, loss)
    if recipe.loss.name == "in_batch":
        shares_I = torch.from_numpy(counts_I / counts_I.sum())
        log_q_I = shares_I.log().float() if recipe.loss.log_q else None
        return SequenceObjective(embedder, partial(_in_batch, log_q_I), whole_catalogue=False)
    sampler = NegativeSampler(recipe.loss.negatives or "uniform", counts_I, seed=seed)
    losses: dict[str, SequenceLoss] = {
        "sampled_softmax": partial(_sampled_softmax, sampler.log_q if recipe.loss.log_q else None),
        "gbce": partial(_gbce, len(counts_I), recipe.loss.t),
    }
    if recipe.loss.name not in losses:
        known = ("in_batch", "full_softmax", *losses)
        raise ValueError(
            f"training.loss must be one of {', '.join(known)} where training.sequences is set, "
            f"got {recipe.loss.name!r}; change one of the two"
        )
    return SequenceObjective(
        embedder,
        losses[recipe.loss.name],
        whole_catalogue=False,
        sampler=sampler,
        n_negatives=recipe.loss.n_negatives,
        rank=rank,
    )


def _full_softmax(
    smoothing: float,
    mask_history: bool,
    products_in: torch.dtype | None,
    positions_MD: Tensor,
    targets_M: Tensor,
    items_ND: Tensor,
    drawn: Drawn,
) -> Tensor:
    return fused_linear_cross_entropy(
        positions_MD,
        targets_M,
        items_ND,
        label_smoothing=smoothing,
        prefixes=drawn.prefixes if mask_history or drawn.repeat_bias is not None else None,
        repeat_bias=drawn.repeat_bias,
        products_in=products_in,
    )


def _in_batch(
    log_q_I: Tensor | None, positions_MD: Tensor, targets_M: Tensor, items_ND: Tensor, drawn: Drawn
) -> Tensor:
    log_q_N = None if log_q_I is None else drawn.rows_of(log_q_I)
    return sequence_in_batch(positions_MD, targets_M, items_ND, log_q_I=log_q_N)


def _sampled_softmax(
    log_q_I: Tensor | None, positions_MD: Tensor, targets_M: Tensor, items_ND: Tensor, drawn: Drawn
) -> Tensor:
    assert drawn.negatives is not None
    log_q_N = None if log_q_I is None else drawn.rows_of(log_q_I)
    return sequence_sampled_softmax(
        positions_MD, targets_M, items_ND, negatives=drawn.negatives, log_q_I=log_q_N
    )


def _gbce(
    n_items: int, t: float, positions_MD: Tensor, targets_M: Tensor, items_ND: Tensor, drawn: Drawn
) -> Tensor:
    assert drawn.negatives is not None
    return sequence_gbce(
        positions_MD, targets_M, items_ND, negatives=drawn.negatives, n_items=n_items, t=t
    )
