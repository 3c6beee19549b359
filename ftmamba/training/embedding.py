"""From ids to embeddings, each distinct record embedded once.

Shapes: B interactions, U distinct users, I items, M items of the batch, D embedding,
W popularity columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ftmamba.data.encoded import EncodedData
from ftmamba.data.read_ahead import to_device
from ftmamba.table_embedding import embed_table
from ftmamba.training.feed import Inputs
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

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and the items (M, D).

        Args:
            inputs: of `gather`; or of `gather_users` with items, which are then embedded as they
                stand. Other names are left alone.
        """
        on_device = to_device(inputs, self.device)
        records = {k: v for k, v in on_device.items() if k.startswith(("user_", "item_"))}
        output = self.model(**records)
        users_UD, items = output.user_embeds / self.base.temperature, output.item_embeds
        if "places_of_items" in on_device:
            items = items[on_device["places_of_items"]]
        return users_UD[on_device["places_of_users"]], items


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, ascending, and the place among them of each."""
    # NumPy sorts integers faster than torch, and in the calling thread alone.
    distinct, places = np.unique(ids.numpy(), return_inverse=True)
    return torch.from_numpy(distinct), torch.from_numpy(places)


def user_embeddings(model: FTMambaTwoTowerModel, data: EncodedData, user_ids: Tensor) -> Tensor:
    """Embed users in evaluation mode; return float32 (U, D) on the CPU."""
    return embed_table(
        model, "user", len(user_ids), lambda start, stop: data.gather_users(user_ids[start:stop])
    )


def catalogue_embeddings(
    model: FTMambaTwoTowerModel, data: EncodedData, as_of: int | None
) -> Tensor:
    """Embed every item as of a time, in evaluation mode; float32 (I, D) on the CPU."""
    return embed_table(model, "item", data.n_items, data.catalogue_rows(as_of))
