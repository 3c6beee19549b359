"""Embeddings of users and of the catalogue by a trained model, in evaluation mode.

Shapes: B users of a block, U users, I items, D embedding.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ftmamba.data.encoded import EncodedData
from ftmamba.data.histories import Histories
from ftmamba.table_embedding import embed_table
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel


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
        histories: of the users; read where the model has a history.
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
        items_ID: embeddings of the catalogue; an event is read as its item is now.
        histories: of the users.
        column: of the histories.
    """
    # Neighbours in length share a block, of which little is then padding.
    n_events_U = histories.counts[user_ids.numpy()]
    order = np.argsort(n_events_U, kind="stable")
    order_U = torch.from_numpy(order)
    sorted_U = user_ids[order_U]
    longest = longest_history(column, histories)

    def rows(start: int, stop: int) -> dict[str, Tensor]:
        ids_B = sorted_U[start:stop]
        events = histories.newest(ids_B.numpy(), longest, features=column.event_features)
        inputs = {
            **gather_users(ids_B),
            "user_history": items_ID[torch.from_numpy(events.item_ids)],
            "user_history_lengths": torch.from_numpy(events.lengths),
        }
        if column.event_features:
            inputs["user_event_features"] = torch.from_numpy(events.features)
        return inputs

    embeds_UD = items_ID.new_empty(len(user_ids), items_ID.shape[1])
    n_events = np.minimum(n_events_U[order], longest)
    embeds_UD[order_U] = embed_table(model, "user", len(user_ids), rows, n_events=n_events)
    return embeds_UD


def longest_history(column: Column, histories: Histories) -> int:
    """Return how many events of a history are read at most."""
    return column.max_length or len(histories.rows)


def catalogue_embeddings(
    model: FTMambaTwoTowerModel, data: EncodedData, as_of: int | None
) -> Tensor:
    """Embed every item as of a time, in evaluation mode; float32 (I, D) on the CPU."""
    return embed_table(model, "item", data.n_items, data.catalogue_rows(as_of))
