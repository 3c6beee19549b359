"""FT-Mamba (Starnes & Webster, arXiv 2409.17165): towers over tabular records, and two of them.

Shapes: B batch, U users, I items, L tokens, D hidden, E embedding (`projection_size`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .configuration_ftmamba import FTMambaConfig, FTMambaTowerConfig
from .layers import FTMambaLayer
from .mixer_mamba import MambaMixer
from .numeric_embeddings import NUMERIC_EMBEDDING_CLASSES
from .scans import scan_named
from .tokens import TOKENS_OF_TENSOR, FeatureTokenizer

# The modules that initialise their own parameters and buffers.
OWN_MODULES: tuple[type[Any], ...] = (
    MambaMixer,
    FeatureTokenizer,
    *TOKENS_OF_TENSOR.values(),
    *NUMERIC_EMBEDDING_CLASSES.values(),
)


@dataclass
class FTMambaTowerOutput(ModelOutput):
    """What one tower returns.

    Attributes:
        embeds: embeddings (B, E).
        pooled: pooled hidden state before the head (B, D).
    """

    embeds: Tensor | None = None
    pooled: Tensor | None = None


@dataclass
class FTMambaTwoTowerOutput(ModelOutput):
    """What the recommender returns.

    Attributes:
        loss: mean cross-entropy in nats, where labels were given.
        scores: inner products over the temperature (U, I).
        user_embeds: embeddings of the users (U, E).
        item_embeds: embeddings of the items (I, E).
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    user_embeds: Tensor | None = None
    item_embeds: Tensor | None = None


class FTMambaPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving common to both models."""

    config_class = FTMambaConfig
    base_model_prefix = "ftmamba"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["FTMambaLayer"]  # noqa: RUF012 - Transformers declares it so

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, OWN_MODULES):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FTMambaTwoTowerModel):
            init.constant_(module.log_temperature, math.log(self.config.temperature))

    def set_scan(self, name: str) -> None:
        """Choose the implementation of the selective scan for this model; see `scans.SCANS`."""
        scan = scan_named(name)
        for module in self.modules():
            if isinstance(module, MambaMixer):
                module.scan = scan

    @property
    def scan_implementation(self) -> str:
        """Name of the scan in use, or `none` where no layer scans."""
        names = {module.scan.name for module in self.modules() if isinstance(module, MambaMixer)}
        return ", ".join(sorted(names)) or "none"


class FTMambaModel(FTMambaPreTrainedModel):
    """One tower: tokens, mixer layers, pooling, norm, feed-forward head."""

    config_class = FTMambaTowerConfig  # type: ignore[assignment]
    _auto_class = "AutoModel"

    def __init__(self, config: FTMambaTowerConfig, name: str = "record") -> None:
        super().__init__(config)
        self.name = name
        self.tokenizer = FeatureTokenizer(config)
        scan = scan_named("auto")
        self.layers = nn.ModuleList(
            FTMambaLayer(config, index, scan) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = _head(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        numeric: Tensor | None = None,
        category_ids: Tensor | None = None,
        set_ids: Tensor | None = None,
        dense: Tensor | None = None,
    ) -> FTMambaTowerOutput:
        """Embed encoded records; see `columns.py` for the tensors.

        Args:
            numeric: float (B, P); NaN means missing.
            category_ids: int64 (B, C).
            set_ids: int64 (B, S), padded with 0.
            dense: float (B, Q); NaN means missing.

        Raises:
            ValueError: a tensor is absent, superfluous or of another width than the columns'.
        """
        tensors = {
            "numeric": numeric, "category_ids": category_ids, "set_ids": set_ids, "dense": dense,
        }  # fmt: skip
        self.tokenizer.check(tensors, self.name)
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        n_rows = next((len(tensor) for tensor in given.values()), 1)
        pooled_BD = self._pool(self.tokenizer(given, n_rows))
        embeds_BE = self.head(self.norm(pooled_BD))
        if self.config.normalize_embeddings:
            embeds_BE = F.normalize(embeds_BE, dim=-1)
        return FTMambaTowerOutput(embeds=embeds_BE, pooled=pooled_BD)

    def _pool(self, hidden_BLD: Tensor) -> Tensor:
        """Run the layers; compute the last one at the last token only where that is exact."""
        only_last = self.config.pooling != "mean" and not self.config.bidirectional
        layers: list[Any] = list(self.layers)
        final = layers.pop() if layers and only_last else None
        for layer in layers:
            hidden_BLD = layer(hidden_BLD)
        if final is not None:
            return final.forward_last(hidden_BLD)
        if self.config.pooling == "mean":
            return hidden_BLD.mean(1)
        if self.config.bidirectional:
            return (hidden_BLD[:, 0] + hidden_BLD[:, -1]) / 2
        return hidden_BLD[:, -1]


class FTMambaTwoTowerModel(FTMambaPreTrainedModel):
    """A user tower and an item tower whose embeddings' inner product is the score."""

    _auto_class = "AutoModel"

    def __init__(self, config: FTMambaConfig) -> None:
        super().__init__(config)
        self.user_tower = FTMambaModel(config.tower("user"), "user")
        self.item_tower = FTMambaModel(config.tower("item"), "item")
        # Shape (1,): FSDP2 refuses parameters without a dimension.
        self.log_temperature = nn.Parameter(torch.empty(1), requires_grad=config.learn_temperature)
        self.post_init()

    @property
    def temperature(self) -> Tensor:
        """Divisor of the inner product (1,)."""
        return self.log_temperature.exp()

    def get_user_embeddings(
        self,
        user_numeric: Tensor | None = None,
        user_category_ids: Tensor | None = None,
        user_set_ids: Tensor | None = None,
        user_dense: Tensor | None = None,
    ) -> Tensor:
        """Embed encoded users; return (U, E)."""
        output = self.user_tower(user_numeric, user_category_ids, user_set_ids, user_dense)
        return output.embeds

    def get_item_embeddings(
        self,
        item_numeric: Tensor | None = None,
        item_category_ids: Tensor | None = None,
        item_set_ids: Tensor | None = None,
        item_dense: Tensor | None = None,
    ) -> Tensor:
        """Embed encoded items; return (I, E)."""
        output = self.item_tower(item_numeric, item_category_ids, item_set_ids, item_dense)
        return output.embeds

    def forward(  # noqa: PLR0913 - Transformers passes a batch as keywords
        self,
        user_numeric: Tensor | None = None,
        user_category_ids: Tensor | None = None,
        user_set_ids: Tensor | None = None,
        user_dense: Tensor | None = None,
        item_numeric: Tensor | None = None,
        item_category_ids: Tensor | None = None,
        item_set_ids: Tensor | None = None,
        item_dense: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> FTMambaTwoTowerOutput:
        """Score every given user against every given item.

        Args:
            user_numeric: see `FTMambaModel.forward`, here and below.
            user_category_ids: int64 (U, C).
            user_set_ids: int64 (U, S).
            user_dense: float (U, Q).
            item_numeric: float (I, P).
            item_category_ids: int64 (I, C).
            item_set_ids: int64 (I, S).
            item_dense: float (I, Q).
            labels: int64 (U,), which of the given items each user took. With them the loss is
                the softmax cross-entropy over the given items. The training library has the
                other objectives, and corrects this one for how the items were drawn.

        Returns:
            Loss (with labels), scores (U, I), embeddings of both sides.
        """
        users_UE = self.get_user_embeddings(
            user_numeric, user_category_ids, user_set_ids, user_dense
        )
        items_IE = self.get_item_embeddings(
            item_numeric, item_category_ids, item_set_ids, item_dense
        )
        scores_UI = users_UE @ items_IE.T / self.temperature.to(users_UE.dtype)
        loss = None if labels is None else F.cross_entropy(scores_UI.float(), labels)
        return FTMambaTwoTowerOutput(
            loss=loss, scores=scores_UI, user_embeds=users_UE, item_embeds=items_IE
        )


def _head(config: FTMambaTowerConfig) -> nn.Module:
    if not config.head_hidden_size:
        return nn.Linear(config.hidden_size, config.projection_size)
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.head_hidden_size),
        nn.GELU(),
        nn.Linear(config.head_hidden_size, config.projection_size),
    )
