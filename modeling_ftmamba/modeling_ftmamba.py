"""FT-Mamba (Starnes & Webster, arXiv 2409.17165) as models of Transformers.

The network itself is in `network.py`; this adds initialisation, training, loading and saving.

Shapes: U users, I items, E embedding (`projection_size`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .configuration_ftmamba import FTMambaConfig, FTMambaTowerConfig
from .network import FTMambaLayer, TowerInputs, TowerNetwork, TwoTowerNetwork, attach_kernels


@dataclass
class FTMambaTowerOutput(ModelOutput):
    """What one tower returns."""

    embeds: Tensor | None = None  # embeddings (B, E)
    pooled: Tensor | None = None  # pooled hidden state before the head (B, D)


@dataclass
class FTMambaTwoTowerOutput(ModelOutput):
    """What the recommender returns."""

    loss: Tensor | None = None  # mean cross-entropy in nats, where labels were given
    scores: Tensor | None = None  # (U, I), see `TwoTowerNetwork.scores`
    user_embeds: Tensor | None = None  # (U, E)
    item_embeds: Tensor | None = None  # (I, E)


class FTMambaCheckpointingLayer(FTMambaLayer, GradientCheckpointingLayer):
    """A layer that, if asked, computes its activations anew instead of keeping them."""


class FTMambaPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving common to both models."""

    config_class = FTMambaConfig
    base_model_prefix = "ftmamba"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["FTMambaCheckpointingLayer"]  # noqa: RUF012 - Transformers declares it so

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, from safetensors alone: other formats can run code when read."""
        for name in ("use_safetensors", "gguf_file"):
            if kwargs.get(name) not in (None, name == "use_safetensors"):
                raise ValueError(f"only safetensors load, got {name}={kwargs[name]!r}; omit it")
        # Of two local folders of one name Transformers runs the first one's code for both.
        folder = Path(str((*args, kwargs.get("pretrained_model_name_or_path"))[0]))
        for own in Path(__file__).parent.glob("*.py") if "transformers_modules" in __name__ else ():
            if (other := folder / own.name).is_file() and other.read_bytes() != own.read_bytes():
                problem = f"{str(other)!r} differs from the code of that name loaded before it"
                raise ValueError(f"{problem}; rename the folder, or load it in a new process")
        loaded: Any = super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})
        (loaded[0] if isinstance(loaded, tuple) else loaded).check_weights()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Linear) and self.config.initializer_range:
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters") and not isinstance(
            module, nn.Embedding | nn.EmbeddingBag
        ):  # The tables are drawn by the modules that hold them.
            module.reset_parameters()


class FTMambaTowerModel(TowerNetwork, FTMambaPreTrainedModel):
    """One tower: tokens, mixer layers, pooling, norm, feed-forward head."""

    config_class = FTMambaTowerConfig  # type: ignore[assignment]
    _auto_class = "AutoModel"

    def __init__(self, config: FTMambaTowerConfig, name: str = "record") -> None:
        super().__init__(config)
        self._build(config, name, FTMambaCheckpointingLayer)
        self.gradient_checkpointing = False
        self.post_init()
        attach_kernels(self)

    def forward(self, **tensors: Tensor | None) -> FTMambaTowerOutput:
        """Embed encoded records; see `TowerInputs` for the tensors."""
        pooled_BD = self.pooled(TowerInputs(**tensors))
        return FTMambaTowerOutput(embeds=self.embedding_of(pooled_BD), pooled=pooled_BD)


class FTMambaTwoTowerModel(TwoTowerNetwork, FTMambaPreTrainedModel):
    """A user tower and an item tower whose embeddings' inner product is the score."""

    _auto_class = "AutoModel"

    def __init__(self, config: FTMambaConfig) -> None:
        super().__init__(config)
        self._build(config, FTMambaTowerModel)
        self.post_init()
        attach_kernels(self)

    def reset_parameters(self) -> None:
        """Start from the config's temperature, and from no difference between items."""
        init.constant_(self.log_temperature, math.log(self.config.temperature))
        if self.repeat_bias is not None:
            init.zeros_(self.repeat_bias)

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
        user_history: Tensor | None = None,
        user_history_lengths: Tensor | None = None,
        user_event_features: Tensor | None = None,
    ) -> FTMambaTwoTowerOutput:
        """Score every given user against every given item.

        The labels, int64 (U,), are the rows of the given items that the users took; with them the
        loss is the softmax cross-entropy over these items. The training library has others.
        """
        items_IE = self.get_item_embeddings(
            item_numeric=item_numeric, item_category_ids=item_category_ids,
            item_set_ids=item_set_ids, item_dense=item_dense,
        )  # fmt: skip
        users_UE = self.get_user_embeddings(
            user_numeric=user_numeric, user_category_ids=user_category_ids,
            user_set_ids=user_set_ids, user_dense=user_dense, user_history=user_history,
            user_history_lengths=user_history_lengths, user_event_features=user_event_features,
        )  # fmt: skip
        scores_UI = self.scores(users_UE, items_IE)
        loss = None if labels is None else F.cross_entropy(scores_UI.float(), labels)
        return FTMambaTwoTowerOutput(
            loss=loss, scores=scores_UI, user_embeds=users_UE, item_embeds=items_IE
        )
