"""From ids to embeddings, each distinct record embedded once.

Shapes: B interactions, U distinct users, I items, M items of the batch, D embedding,
W popularity columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ftmamba.data.encoded import EncodedData
from ftmamba.data.histories import Histories
from ftmamba.data.read_ahead import to_device
from ftmamba.table_embedding import embed_table
from ftmamba.training.feed import Batch, Inputs
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel


@dataclass(frozen=True)
class PairEmbedder:
    """Embeds users and items of a batch in one call of the (possibly wrapped) model.

    Attributes:
        model: what Accelerate prepared; its `forward` carries the hooks of DDP.
        base: the model inside.
        data: the encoded tables.
        device: where the model is.
    """

    model: nn.Module
    base: FTMambaTwoTowerModel
    data: EncodedData
    device: torch.device

    def gather(
        self, user_ids_B: Tensor, item_ids_M: Tensor, popularity_MW: Tensor | None
    ) -> Inputs:
        """Gather the distinct records of users and items, and where each occurs.

        A user occurs in a batch often, an item too unless its popularity differs from row to
        row: a distinct one is embedded once, which is exact and saves most of the work. (All its
        places share one dropout mask.)

        Args:
            user_ids_B: rows of the table of users.
            item_ids_M: rows of the table of items.
            popularity_MW: scaled popularity of each item at its own time, or None.
        """
        users = self.gather_users(user_ids_B)
        if popularity_MW is not None:
            return {**users, **self.data.gather_items(item_ids_M, popularity_MW)}
        distinct_I, places_M = _distinct(item_ids_M)
        return {**users, **self.data.gather_items(distinct_I), "places_of_items": places_M}

    def gather_users(self, user_ids_B: Tensor) -> Inputs:
        """Gather the distinct records of the users, and where each occurs."""
        distinct_U, places_B = _distinct(user_ids_B)
        return {**self.data.gather_users(distinct_U), "places_of_users": places_B}

    def gather_prefixes(self, batch: Batch) -> Inputs:
        """Gather each row's user with the history that the user had before that interaction.

        With times, what happened in the same second is no part of it. The events' items are rows
        of the catalogue, which has to be embedded whole.
        """
        histories, user_ids_B = self.data.histories, batch["user_ids"]
        column = self.data.history_column
        assert histories is not None
        assert column is not None
        if "times" in batch:
            before = {"before": batch["times"].numpy()}
        else:
            before = {"n_first": histories.n_earlier[batch["rows"].numpy()]}
        return {
            **self.data.gather_users(user_ids_B),
            **history_inputs(histories, column, user_ids_B, **before),
            "places_of_users": torch.arange(len(user_ids_B)),
        }

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and the items (M, D).

        Args:
            inputs: of `gather`; or of `gather_users` with items, which are then embedded as they
                stand. Other names are left alone.
        """
        on_device = to_device(inputs, self.device)
        records = {k: v for k, v in on_device.items() if k.startswith(("user_", "item_"))}
        output = self.model(**records, with_scores=False)
        users_UD, items = output.user_embeds / self.base.temperature, output.item_embeds
        if "places_of_items" in on_device:
            items = items[on_device["places_of_items"]]
        return users_UD[on_device["places_of_users"]], items


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, ascending, and the place among them of each."""
    # NumPy sorts integers faster than torch, and in the calling thread alone.
    distinct, places = np.unique(ids.numpy(), return_inverse=True)
    return torch.from_numpy(distinct), torch.from_numpy(places)


def history_inputs(
    histories: Histories, column: Column, user_ids_B: Tensor, **before: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Return the newest events of users as the model's arguments, items as rows of the catalogue.

    Args:
        histories: of the users.
        column: which says how many events, and what stands beside them.
        user_ids_B: rows of the table of users, repeats allowed.
        before: which events count, as `Histories.newest` takes it.
    """
    longest = longest_history(column, histories)
    events = histories.newest(user_ids_B.numpy(), longest, features=column.event_features, **before)
    inputs: dict[str, NDArray[Any]] = {
        "user_history_places": events.item_ids,
        "user_history_lengths": events.lengths,
    }
    if column.event_features:
        inputs["user_event_features"] = events.features
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def user_embeddings(
    model: FTMambaTwoTowerModel,
    data: EncodedData,
    user_ids: Tensor,
    items: Tensor | None = None,
    histories: Histories | None = None,
) -> Tensor:
    """Embed users in evaluation mode; return float32 (U, D) on the CPU.

    Args:
        model: put back into training mode afterwards if it was in it.
        data: the tables as the model reads them.
        user_ids: rows of the table of users.
        items: embeddings (I, D) of the catalogue, of which histories are made; of no use without.
        histories: what users are known to have done; read where the model has a history.
    """
    column = data.history_column
    if column is None or histories is None or items is None:
        return embed_table(
            model, "user", len(user_ids),
            lambda start, stop: data.gather_users(user_ids[start:stop]),
        )  # fmt: skip
    return embed_with_histories(model, data.gather_users, user_ids, items, histories, column)


def embed_with_histories(
    model: FTMambaTwoTowerModel,
    gather_users: Callable[[Tensor], Mapping[str, Tensor]],
    user_ids: Tensor,
    items_ID: Tensor,
    histories: Histories,
    column: Column,
) -> Tensor:
    """Embed users who have a history; see `user_embeddings`.

    Args:
        model: with a column of histories.
        gather_users: from rows of the table of users to what the model reads of them beside it.
        user_ids: rows of the table of users.
        items_ID: embeddings of the catalogue.
        histories: of the users.
        column: of the histories.
    """
    # Neighbours in length share a block, of which little is then padding.
    n_events_U = histories.counts[user_ids.numpy()]
    order = np.argsort(n_events_U, kind="stable")
    order_U = torch.from_numpy(order)
    sorted_U = user_ids[order_U]

    def rows(start: int, stop: int) -> dict[str, Tensor]:
        ids_B = sorted_U[start:stop]
        inputs = history_inputs(histories, column, ids_B)
        inputs["user_history"] = items_ID[inputs.pop("user_history_places")]
        return {**gather_users(ids_B), **inputs}

    embeds_UD = items_ID.new_empty(len(user_ids), items_ID.shape[1])
    n_events = np.minimum(n_events_U[order], longest_history(column, histories))
    embeds_UD[order_U] = embed_table(model, "user", len(user_ids), rows, n_events=n_events)
    return embeds_UD


def longest_history(column: Column, histories: Histories) -> int:
    """Return how many events of a history are read at most."""
    return column.max_length or len(histories.items.item_ids)


def catalogue_embeddings(
    model: FTMambaTwoTowerModel, data: EncodedData, as_of: int | None
) -> Tensor:
    """Embed every item as of a time, in evaluation mode; float32 (I, D) on the CPU."""
    return embed_table(model, "item", data.n_items, data.catalogue_rows(as_of))
