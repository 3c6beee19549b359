"""From ids to embeddings, each distinct record embedded once.

Shapes: B interactions, U distinct users, I items, M items of the batch, D embedding,
W popularity columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ftmamba.catalogue import embed_items
from ftmamba.data.encoded import EncodedData
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

    def embed(
        self, user_ids_B: Tensor, item_ids_M: Tensor, popularity_MW: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and the items (M, D).

        A user occurs in a batch often, an item too unless its popularity differs from row to
        row: a distinct one is embedded once, which is exact and saves most of the work. (All its
        places share one dropout mask.)

        Args:
            user_ids_B: rows of the table of users.
            item_ids_M: rows of the table of items.
            popularity_MW: scaled popularity of each item at its own time, or None.
        """
        distinct_U, place_B = torch.unique(user_ids_B, return_inverse=True)
        users = self.data.gather_users(distinct_U)
        if popularity_MW is not None:
            items = self.data.gather_items(item_ids_M, popularity_MW)
            users_UD, items_MD = self._forward({**users, **items})
            return users_UD[place_B.to(self.device)], items_MD
        distinct_I, place_M = torch.unique(item_ids_M, return_inverse=True)
        users_UD, items_ID = self._forward({**users, **self.data.gather_items(distinct_I)})
        return users_UD[place_B.to(self.device)], items_ID[place_M.to(self.device)]

    def embed_catalogue(
        self, user_ids_B: Tensor, catalogue: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the users (B, D), divided by the temperature, and every item (I, D)."""
        distinct_U, place_B = torch.unique(user_ids_B, return_inverse=True)
        users_UD, items_ID = self._forward({**self.data.gather_users(distinct_U), **catalogue})
        return users_UD[place_B.to(self.device)], items_ID

    def _forward(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        output = self.model(**send_to_device(dict(tensors), self.device))
        return output.user_embeds / self.base.temperature, output.item_embeds


@torch.inference_mode()
def user_embeddings(
    model: FTMambaTwoTowerModel, data: EncodedData, user_ids: Tensor, *, batch_size: int = 4096
) -> Tensor:
    """Embed users, blocked, in evaluation mode; return float32 (U, D) on the CPU."""
    was_training = model.training
    model.train(False)
    blocks = [
        model.get_user_embeddings(**send_to_device(data.gather_users(ids), model.device))
        for ids in torch.split(user_ids, batch_size)
    ]
    model.train(was_training)
    return torch.cat(blocks).float().cpu()


def catalogue_embeddings(
    model: FTMambaTwoTowerModel, data: EncodedData, as_of: int | None
) -> Tensor:
    """Embed every item as of a time, in evaluation mode; float32 (I, D) on the CPU."""
    return embed_items(model, data.catalogue(as_of))
