"""What a step minimises: from a batch of windows to the loss of its positions.

A window is a stretch of a user's events with a target at each position; a row of the interactions
is a window with one target. What needs no model is prepared in a thread, the rest is the `forward`
of one module around the model, which is what Accelerate wraps: so the model knows nothing of
training.

Where items have popularity columns, nothing of the future is in them. An event of a history has the
item's popularity as of the event's own time. Candidates have it as of the position's time, or where
all positions share them, as of the earliest time of the position's group (`loss.time_buckets`).

Shapes: B windows, T events, M positions, S negatives, N candidates, G groups of positions by time,
I items of the catalogue, R embedded items, D embedding, F event features, K items of a list.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ftmamba.data.batches import Batch
from ftmamba.data.encoded import EncodedData
from ftmamba.data.read_ahead import to_device
from ftmamba.recipe import LossRecipe, TrainingRecipe
from ftmamba.training.fused_cross_entropy import fused_linear_cross_entropy
from ftmamba.training.losses import (
    Negatives,
    binary_loss,
    full_mse_loss,
    gbce_beta,
    in_batch_loss,
    sampled_softmax_loss,
    squared_loss,
)
from ftmamba.training.negatives import KnownPositives, NegativeSampler, SeenItems
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

Inputs = dict[str, Tensor]
"""What goes to the device: arguments of the model, and what the loss reads."""


@dataclass(frozen=True)
class Prepared:
    """A batch and all that can be made of it before the model runs.

    Attributes:
        batch: the windows; they stay on the CPU.
        step: the optimizer step that the batch belongs to.
        inputs: of the users, and unless other ranks' targets are among them, of the candidates.
    """

    batch: Batch
    step: int
    inputs: Inputs


class Objective(nn.Module):
    """The model with its loss: `forward` goes from a prepared batch to the loss.

    Attributes:
        model: as it was given; what Accelerate wraps is this module around it.
    """

    def __init__(
        self,
        model: FTMambaTwoTowerModel,
        data: EncodedData,
        recipe: TrainingRecipe,
        *,
        seed: int,
        in_bfloat16: bool = False,
    ) -> None:
        """Check that the data and the model go with the loss.

        Args:
            model: the model.
            data: the encoded tables and training interactions.
            recipe: how to train.
            seed: of the negatives.
            in_bfloat16: whether the products of the softmax over all items are in bfloat16.

        Raises:
            ValueError: an option that would have no effect, or a loss that cannot be computed.
        """
        super().__init__()
        self.model, self.data, self.loss, self.seed = model, data, recipe.loss, seed
        self.sequences, self.products_in = recipe.sequences, torch.bfloat16 if in_bfloat16 else None
        self.timeless = not data.popularity_slots
        loss, sampled = recipe.loss, recipe.loss.name in ("sampled_softmax", "gbce")
        # A batch that is a stretch of time needs no groups.
        usual = 0 if sampled else 1 if recipe.batch_order == "time" else 4
        self.time_buckets = usual if loss.time_buckets is None else loss.time_buckets
        _check(loss, data, learns_repeats=model.repeat_bias is not None)
        self.whole = loss.name == "full_mse" or (
            loss.name == "full_softmax" and not loss.n_sampled_items
        )
        self.own_negatives = loss.name in ("bce", "mse") or (
            sampled and not self.timeless and not self.time_buckets
        )
        self.reads_all_targets = loss.name == "in_batch" or bool(loss.n_sampled_items)
        self.sampler = None
        if loss.n_negatives:
            self.sampler = NegativeSampler(loss.negatives or "uniform", data.item_counts, seed=seed)
        self.beta = 1.0
        if loss.name == "gbce":
            self.beta = gbce_beta(loss.n_negatives, data.n_items, loss.t)

    def prepare(self, batch: Batch, step: int) -> Prepared:
        """Do what needs no model, in a thread: no gradient, nothing sent to other processes."""
        batch = self._predictable(batch)
        inputs = self._users(batch)
        if not (self.reads_all_targets and _n_ranks() > 1):
            inputs |= self._items(batch, step, batch.targets)
        return Prepared(batch, step, inputs)

    def forward(self, prepared: Prepared) -> Tensor:
        """Return this process's mean loss, so weighted that positions of all ranks count alike."""
        batch, inputs, device = prepared.batch, prepared.inputs, self.model.device
        if "targets" not in inputs:
            all_targets = ids_of_all_ranks(batch.targets.to(device)).cpu()
            inputs = inputs | self._items(batch, prepared.step, all_targets)
        inputs = to_device(inputs, device)
        queries_MD, items_RD = self.embed(inputs)
        with torch.autocast(device.type, enabled=False):
            if queries_MD.dtype != torch.float64:
                queries_MD, items_RD = queries_MD.float(), items_RD.float()
            queries_MD = queries_MD / self.model.temperature
            if not len(queries_MD):
                loss = queries_MD.sum() + 0 * items_RD.sum()
            elif self.own_negatives:
                loss = self._loss(queries_MD, items_RD, inputs, slice(None))
            else:
                loss = self._loss_by_groups(queries_MD, items_RD, inputs)
            return loss * weight_of_rank(len(queries_MD), device)

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the queries (M, D), before the temperature, and the embedded items (R, D)."""
        users = {name: one for name, one in inputs.items() if name.startswith("user_")}
        items = {name: one for name, one in inputs.items() if name.startswith("item_")}
        items_RD = self.model.get_item_embeddings(**(items or self._catalogue))
        if "history" in inputs:
            users["user_history"] = F.embedding(inputs["history"], items_RD)
        if self.sequences:
            embeds = self.model.get_user_positions(**users).flatten(0, 1)
        else:
            embeds = self.model.get_user_embeddings(**users)
        return embeds[inputs["queries"]], items_RD

    @torch.no_grad()
    def explain(self, prepared: Prepared) -> str:
        """Say in whose embeddings the numbers are not finite."""
        batch = prepared.batch
        inputs = prepared.inputs | self._items(batch, prepared.step, batch.targets)
        queries_MD, _ = self.embed(to_device(inputs, self.model.device))
        bad_M = (~queries_MD.isfinite().all(1)).cpu()
        users_M, word = batch.user_ids[batch.windows], "not" if bool(bad_M.any()) else "all"
        users = np.unique(users_M[bad_M] if word == "not" else users_M)
        return f"the embeddings of {shown(torch.from_numpy(users), 'user row')} are {word} finite"

    def _loss_by_groups(self, queries_MD: Tensor, items_RD: Tensor, inputs: Inputs) -> Tensor:
        if "candidates" not in inputs:
            return self._loss(queries_MD, items_RD, inputs, slice(None))
        if len(inputs["candidates"]) == 1:
            items_ND = items_RD[inputs["candidates"][0]]
            return self._loss(queries_MD, items_ND, inputs, slice(None))
        loss = queries_MD.new_zeros(())
        for group, rows_N in enumerate(inputs["candidates"]):
            at = (inputs["groups"] == group).nonzero().flatten()
            own = self._loss(queries_MD[at], items_RD[rows_N], inputs, at)
            loss = loss + own * (len(at) / len(queries_MD))
        return loss

    def _loss(
        self, queries_CD: Tensor, items_ND: Tensor, inputs: Inputs, at: Tensor | slice
    ) -> Tensor:
        """Return the mean loss of some of the positions, against candidates of their own."""
        loss, targets_C = self.loss, inputs["targets"][at]
        seen = None
        if "seen_items" in inputs:
            every = (inputs[f"seen_{name}"] for name in ("items", "lists", "lengths"))
            seen = SeenItems(*every).at(at)
        if loss.name == "full_softmax":
            bias = self.model.repeat_bias
            weights_M = inputs.get("weights")
            return fused_linear_cross_entropy(
                queries_CD,
                targets_C,
                items_ND,
                log_weights_I=inputs.get("log_weights"),
                label_smoothing=loss.label_smoothing,
                weights_M=None if weights_M is None else weights_M[at],
                seen=seen,
                repeat_bias=None if bias is None else bias / self.model.temperature,
                products_in=self.products_in,
            )
        if loss.name == "full_mse":
            return full_mse_loss(
                queries_CD, items_ND, targets_C,
                user_counts_M=inputs["n_interactions"][at],
                positive_weight=loss.positive_weight, l2=loss.l2,
            )  # fmt: skip
        target_log_q_M = inputs.get("target_log_q")
        negatives = Negatives(
            inputs["negatives"],
            log_q=inputs.get("log_q"),
            target_log_q=None if target_log_q_M is None else target_log_q_M[at],
            counts=inputs.get("counts"),
            excluded=None if seen is None else _excluded(seen, inputs),
        )
        if loss.name == "in_batch":
            return in_batch_loss(queries_CD, items_ND, targets_C, negatives)
        if loss.name == "sampled_softmax":
            return sampled_softmax_loss(queries_CD, items_ND, targets_C, negatives)
        if loss.name == "mse":
            return squared_loss(queries_CD, items_ND, targets_C, negatives)
        return binary_loss(queries_CD, items_ND, targets_C, negatives, beta=self.beta)

    def _predictable(self, batch: Batch) -> Batch:
        """Leave out first events where the model reads nothing from which to predict them."""
        if not self.sequences or self.model.user_tower.reads_before_events:
            return batch
        kept = batch.slots > 0
        names = ("windows", "slots", "targets", "times", "rows")
        given = {name: getattr(batch, name) for name in names}
        left: dict[str, Any] = {k: None if v is None else v[kept] for k, v in given.items()}
        return replace(batch, **left)

    def _users(self, batch: Batch) -> Inputs:
        """Return what the user tower reads but for the items of the history, and the queries."""
        if self.data.history_column is None:
            # A user occurs in a batch often: a distinct one is embedded once, which is exact. (All
            # its positions share one dropout mask.)
            distinct, index_B = np.unique(batch.user_ids.numpy(), return_inverse=True)
            users = self.data.gather_users(torch.from_numpy(distinct))
            return {**users, "queries": torch.from_numpy(index_B)[batch.windows]}
        inputs = self.data.gather_users(batch.user_ids)
        if batch.event_features is not None:
            inputs["user_event_features"] = batch.event_features
        n_slots = batch.history_ids.shape[1] + 1
        queries = batch.windows * n_slots + batch.slots if self.sequences else batch.windows
        return {**inputs, "user_history_lengths": batch.lengths, "queries": queries}

    def _items(self, batch: Batch, step: int, all_targets: Tensor) -> Inputs:
        """Return the items to embed, and which of them are in histories or are candidates.

        Args:
            batch: the windows.
            step: names the draw of negatives.
            all_targets: the targets of all ranks, where the loss reads them.
        """
        wanted: dict[str, tuple[Tensor, Tensor | None]] = {}
        if self.data.history_column is not None:
            wanted["history"] = (batch.history_ids, batch.history_times)
        if self.own_negatives:
            candidates_N, inputs, own = self._draw_own(batch, step)
            wanted |= own
        else:
            candidates_N, inputs = self._draw_shared(batch, step, all_targets)
            inputs["targets"] = torch.searchsorted(candidates_N, batch.targets)
            if self.timeless:
                wanted["candidates"] = (candidates_N[None], None)
            else:
                assert batch.times is not None
                groups, earliest_G = time_groups(batch.times.numpy(), self.time_buckets)
                inputs["groups"] = torch.from_numpy(groups)
                times_GN = torch.from_numpy(earliest_G)[:, None].expand(-1, len(candidates_N))
                wanted["candidates"] = (candidates_N.expand_as(times_GN), times_GN)
        inputs |= self._seen(batch, candidates_N)
        if self.whole and self.timeless:
            # The whole catalogue lies on the device; rows of it are ids.
            del wanted["candidates"]
            inputs |= {name: ids for name, (ids, _) in wanted.items()}
        else:
            inputs |= self._gather(wanted)
        users_M = batch.user_ids[batch.windows]
        if self.loss.user_weight_exponent:
            inputs["weights"] = self._user_weights[users_M]
        if self.loss.name == "full_mse":
            inputs["n_interactions"] = self._user_counts[users_M]
        return inputs

    def _draw_own(
        self, batch: Batch, step: int
    ) -> tuple[Tensor, Inputs, dict[str, tuple[Tensor, Tensor | None]]]:
        """Draw negatives of each position: their distinct ids (N,), what is read, what to embed."""
        assert self.sampler is not None
        negatives_MS = self.sampler.draw(batch.rows.numpy(), self.loss.n_negatives, step)
        candidates_N = torch.from_numpy(np.unique(negatives_MS.numpy()))
        inputs = {
            "candidate_ids": candidates_N,
            "columns_of_negatives": torch.searchsorted(candidates_N, negatives_MS),
        }
        if self.loss.log_q:
            inputs["log_q"] = self.sampler.log_q[negatives_MS]
        times_MS = None if batch.times is None else batch.times[:, None].expand_as(negatives_MS)
        wanted = {"targets": (batch.targets, batch.times), "negatives": (negatives_MS, times_MS)}
        return candidates_N, inputs, wanted

    def _draw_shared(self, batch: Batch, step: int, all_targets: Tensor) -> tuple[Tensor, Inputs]:
        """Return the ids (N,), ascending, of the candidates of all positions, and what is read."""
        loss, data = self.loss, self.data
        if self.whole:
            return torch.arange(data.n_items), {}
        if self.sampler is not None:
            drawn_S = self.sampler.draw(np.zeros(1, np.int64), loss.n_negatives, step)[0]
            ids = np.unique(torch.cat([batch.targets, drawn_S]).numpy())
            candidates_N = torch.from_numpy(ids)
            columns_S = torch.searchsorted(candidates_N, drawn_S)
            inputs = {"negatives": columns_S, "columns_of_negatives": columns_S}
            if loss.log_q:
                inputs["log_q"] = self.sampler.log_q[drawn_S]
            return candidates_N, inputs | {"candidate_ids": candidates_N}
        ids, counts = np.unique(all_targets.numpy(), return_counts=True)
        if loss.name == "in_batch":
            candidates_N = torch.from_numpy(ids)
            columns_N = torch.arange(len(ids))
            inputs = {"negatives": columns_N, "columns_of_negatives": columns_N}
            inputs |= {"counts": torch.from_numpy(counts), "candidate_ids": candidates_N}
            if loss.log_q:
                inputs["log_q"] = self._log_q[candidates_N]
                inputs["target_log_q"] = self._log_q[batch.targets]
            return candidates_N, inputs
        others = np.setdiff1d(np.arange(data.n_items), ids, assume_unique=True)
        n_drawn = min(loss.n_sampled_items, len(others))
        generator = np.random.default_rng((self.seed, step))
        drawn = generator.choice(others, n_drawn, replace=False)
        candidates_N = torch.from_numpy(np.sort(np.concatenate([ids, drawn])))
        is_target_N = torch.isin(candidates_N, torch.from_numpy(ids), assume_unique=True)
        stands_for = math.log(len(others) / n_drawn) if n_drawn else 0.0
        return candidates_N, {"log_weights": torch.where(is_target_N, 0.0, stands_for)}

    def _seen(self, batch: Batch, candidates_N: Tensor) -> Inputs:
        """Return the items that each position has seen, as columns of the candidates."""
        if self.loss.mask_known_positives:
            distinct, index_B = np.unique(batch.user_ids.numpy(), return_inverse=True)
            items = self._known.of_users(torch.from_numpy(distinct))
            lists = torch.from_numpy(index_B)[batch.windows]
            lengths = torch.full_like(lists, items.shape[1])
        elif self.loss.mask_history or self.model.repeat_bias is not None:
            items, lists, lengths = batch.history_ids, batch.windows, batch.slots
        else:
            return {}
        if not self.whole:
            columns = torch.searchsorted(candidates_N, items).clamp(max=len(candidates_N) - 1)
            items = torch.where(candidates_N[columns] == items, columns, -1)
        return {"seen_items": items, "seen_lists": lists, "seen_lengths": lengths}

    def _gather(self, wanted: Mapping[str, tuple[Tensor, Tensor | None]]) -> Inputs:
        """Gather distinct items, with popularity those of distinct times, and where each is."""
        all_ids = np.concatenate([ids.numpy().ravel() for ids, _ in wanted.values()])
        if self.timeless:
            # NumPy sorts integers faster than torch, and in the calling thread alone.
            distinct, index = np.unique(all_ids, return_inverse=True)
            inputs = self.data.gather_items(torch.from_numpy(distinct))
        else:
            all_times = [np.ravel(times) for _, times in wanted.values() if times is not None]
            moments, moment = np.unique(np.concatenate(all_times), return_inverse=True)
            pairs, index = np.unique(all_ids * len(moments) + moment, return_inverse=True)
            item_ids, times = pairs // len(moments), moments[pairs % len(moments)]
            popularity = torch.from_numpy(self.data.popularity_at(item_ids, times))
            inputs = self.data.gather_items(torch.from_numpy(item_ids), popularity)
        sizes = [ids.numel() for ids, _ in wanted.values()]
        parts = torch.split(torch.from_numpy(index), sizes)
        for (name, (ids, _)), part in zip(wanted.items(), parts, strict=True):
            inputs[name] = part.view(ids.shape)
        return inputs

    @cached_property
    def _catalogue(self) -> dict[str, Tensor]:
        return to_device(self.data.catalogue(None), self.model.device)

    @cached_property
    def _known(self) -> KnownPositives:
        return KnownPositives(*self.data.training_pairs(), self.data.n_items)

    @cached_property
    def _log_q(self) -> Tensor:
        """Return ln q (I,): how often each item is a target, hence in a batch."""
        counts_I = torch.as_tensor(self.data.item_counts, dtype=torch.float64)
        return (counts_I / counts_I.sum()).log().float()

    @cached_property
    def _user_counts(self) -> Tensor:
        """Training interactions of each user (U,)."""
        return torch.bincount(self.data.training_pairs()[0], minlength=self.data.n_users)

    @cached_property
    def _user_weights(self) -> Tensor:
        """Return count^-exponent of each user (U,), scaled to mean 1 over the interactions."""
        counts_U = self._user_counts
        weights_U = counts_U.clamp(min=1).double() ** -self.loss.user_weight_exponent
        return (weights_U * counts_U.sum() / (weights_U * counts_U).sum()).float()


def _excluded(seen: SeenItems, inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """Return the function from numbers of positions to which of their negatives are seen items."""
    columns, n_candidates = inputs["columns_of_negatives"], len(inputs["candidate_ids"])

    def excluded(index_C: Tensor) -> Tensor:
        mask_CN = seen.at(index_C).mask(n_candidates)
        return mask_CN[:, columns] if columns.ndim == 1 else mask_CN.gather(1, columns[index_C])

    return excluded


def time_groups(
    times_M: NDArray[np.int64], n_groups: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put positions into groups of about one size by time.

    Args:
        times_M: UTC seconds of the targets.
        n_groups: at most so many; 0: one for each time.

    Returns:
        The group of each position (M,), and the earliest time of each group (G,).
    """
    if not n_groups:
        earliest_G, group_M = np.unique(times_M, return_inverse=True)
        return group_M, earliest_G
    order_M = np.argsort(times_M, kind="stable")
    n_groups = min(n_groups, len(times_M))
    group_M = np.empty_like(order_M)
    group_M[order_M] = np.arange(len(order_M)) * n_groups // max(1, len(order_M))
    firsts_G = -(-np.arange(n_groups) * len(order_M) // max(1, n_groups))
    return group_M, times_M[order_M[firsts_G]]


def shown(rows: Tensor, noun: str, n_shown: int = 5) -> str:
    """Return "rows 3, 5, 8 and 12 more"."""
    first = ", ".join(str(row) for row in rows[:n_shown].tolist())
    rest = f" and {len(rows) - n_shown} more" if len(rows) > n_shown else ""
    return f"{noun}{'s' if len(rows) > 1 else ''} {first}{rest}"


def _check(loss: LossRecipe, data: EncodedData, *, learns_repeats: bool) -> None:
    """Refuse what data or model do not let the loss read."""
    if loss.mask_history and data.history_column is None:
        raise ValueError(
            "mask_history needs a column of kind 'history' among the users' columns; add one to "
            "the schema, or use mask_known_positives"
        )
    if not data.popularity_slots and loss.time_buckets is not None:
        raise ValueError(
            f"time_buckets {loss.time_buckets} is for items with popularity columns, and there are "
            "none; add popularity_days to the items' schema, or remove it"
        )
    if not learns_repeats:
        return
    if loss.name != "full_softmax":
        raise ValueError(
            f"a model with repeat_bias learns it with the loss full_softmax, got {loss.name!r}; "
            "change the loss or remove repeat_bias"
        )
    for name in ("mask_history", "mask_known_positives"):
        if getattr(loss, name):
            raise ValueError(
                f"{name} leaves seen items out, from which repeat_bias is learned; remove one of "
                "the two"
            )


def _n_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def ids_of_all_ranks(ids: Tensor) -> Tensor:
    """Concatenate the ids of all ranks, of which some may have more; none of them is negative."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=ids.device) for _ in range(_n_ranks())]
    dist.all_gather(sizes, torch.tensor([len(ids)], device=ids.device))
    padded = F.pad(ids, (0, int(torch.cat(sizes).max()) - len(ids)), value=-1)
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded)
    gathered = torch.cat(received)
    return gathered[gathered >= 0]


def weight_of_rank(n_positions: int, device: torch.device) -> Tensor | float:
    """Return by what this rank's mean over its positions counts, so that all count alike.

    With gradients averaged over the ranks as DDP does, parameters then get the gradient of the
    mean over the positions of all ranks, of which some ranks may have more.
    """
    if _n_ranks() == 1:
        return 1.0
    total = torch.tensor(n_positions, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (n_positions * _n_ranks() / total.clamp(min=1)).float()
