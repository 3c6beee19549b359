"""The network in plain torch: of one tower, and of two.

`modeling_ftmamba` makes Transformers' models of it, which train, save and load. To recommend needs
no more than this, and starts in half the time, for Transformers' models import much.

Shapes: B batch, U users, I items, L tokens, T events, S slots (T + 1), D hidden, E embedding
(`projection_size`), F event features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from .configuration_ftmamba import FTMambaConfig, FTMambaTowerConfig
from .history import TokenRows
from .layers import FTMambaLayer
from .mixer_mamba import MambaMixer
from .scans import scan_named
from .streaming import StreamingTower, StreamingUsers
from .tokens import FeatureTokenizer
from .tower_inputs import GivenEvents, fitting_inputs

logger = logging.get_logger(__name__)


@dataclass
class FTMambaTowerOutput(ModelOutput):
    """What one tower returns.

    Attributes:
        embeds: embeddings (B, E).
        pooled: pooled hidden state before the head (B, D).
    """

    embeds: Tensor | None = None
    pooled: Tensor | None = None


class Scanning(nn.Module):
    """What can be asked of every network with Mamba layers."""

    def set_scan(self, name: str) -> None:
        """Choose the implementation of the selective scan for this model; see `scans.SCANS`.

        Raises:
            ValueError: no implementation has that name.
            RuntimeError: it cannot run here; says why and how to get it.
        """
        scan = scan_named(name)
        for module in self.modules():
            if isinstance(module, MambaMixer):
                module.scan = scan
        logger.info(f"Scan of {type(self).__name__}: {self.scan_implementation}")

    @property
    def scan_implementation(self) -> str:
        """Name of the scan in use on the model's device, or `none` where no layer scans."""
        mixers = (module for module in self.modules() if isinstance(module, MambaMixer))
        names = {mixer.scan.for_tensor(mixer.D).name for mixer in mixers}
        return ", ".join(sorted(names)) or "none"


class TowerNetwork(Scanning, StreamingTower):
    """One tower: tokens, mixer layers, pooling, norm, feed-forward head."""

    config: Any

    def add_parts(
        self, config: FTMambaTowerConfig, name: str, layer_class: type[FTMambaLayer]
    ) -> None:
        """Make the modules of a tower, for the constructor of a class that is one.

        Args:
            config: of the tower.
            name: the tower in words, for errors.
            layer_class: of its layers.
        """
        self.name = name
        self.tokenizer = FeatureTokenizer(config)
        scan = scan_named("auto")
        self.layers = nn.ModuleList(
            layer_class(config, index, scan) for index in range(config.num_hidden_layers)
        )
        with_norm = config.final_norm
        self.norm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if with_norm else nn.Identity()
        )
        self.head = _head(config)

    def forward(
        self,
        numeric: Tensor | None = None,
        category_ids: Tensor | None = None,
        set_ids: Tensor | None = None,
        dense: Tensor | None = None,
        history: Tensor | None = None,
        history_lengths: Tensor | None = None,
        event_features: Tensor | None = None,
    ) -> FTMambaTowerOutput:
        """Embed encoded records; see `columns.py` for the tensors.

        A row without any token, for it has no columns and no events yet, is pooled to 0.

        Args:
            numeric: float (B, P); NaN means missing.
            category_ids: int64 (B, C).
            set_ids: int64 (B, S), padded with 0.
            dense: float (B, Q); NaN means missing.
            history: float (B, T, E), the item tower's embeddings of each user's events, oldest
                first, padded on the right; None means no events.
            history_lengths: int64 (B,), events of each user; None means T of all.
            event_features: float (B, T, F), what the history's column names; NaN means missing.

        Raises:
            ValueError: a tensor is absent, superfluous or of another width than the columns'.
        """
        tensors = {
            "numeric": numeric, "category_ids": category_ids, "set_ids": set_ids, "dense": dense,
        }  # fmt: skip
        events = GivenEvents(history, history_lengths, event_features)
        inputs = fitting_inputs(self, tensors, events)
        pooled_BD = self.pool(self.tokenizer.rows(*inputs))
        return FTMambaTowerOutput(embeds=self.embedding_of(pooled_BD), pooled=pooled_BD)

    def forward_positions(
        self,
        numeric: Tensor | None = None,
        category_ids: Tensor | None = None,
        set_ids: Tensor | None = None,
        dense: Tensor | None = None,
        history: Tensor | None = None,
        history_lengths: Tensor | None = None,
        event_features: Tensor | None = None,
    ) -> Tensor:
        """Embed each user as of every event: all prefixes of a history at once.

        The arguments are those of `forward`.

        Returns:
            (B, T + 1, E): slot t is what `forward` makes of the first t events. The slots beyond a
            row's own events are to be ignored.

        Raises:
            ValueError: a tensor does not fit, or the tower does not embed its last token.
        """
        self.history_tokens("the embeddings of all positions", ("last",))
        tensors = {
            "numeric": numeric, "category_ids": category_ids, "set_ids": set_ids, "dense": dense,
        }  # fmt: skip
        events = GivenEvents(history, history_lengths, event_features)
        inputs = fitting_inputs(self, tensors, events)
        assert inputs.events is not None
        n_slots = inputs.events.embeds.shape[1] + 1
        hidden_BLD = self._through(self.layers, self.tokenizer.rows(*inputs))
        if hidden_BLD.shape[1] < n_slots:
            hidden_BLD = F.pad(hidden_BLD, (0, 0, 1, 0))
        return self.embedding_of(hidden_BLD[:, -n_slots:])

    def _through(self, layers: Iterable[Any], rows: TokenRows) -> Tensor:
        """Return the tokens (B, L, D) that layers make of tokens."""
        hidden_BLD = rows.hidden
        if hidden_BLD.shape[1] == 0:
            return hidden_BLD
        for layer in layers:
            hidden_BLD = layer(hidden_BLD) if rows.gaps is None else layer(hidden_BLD, rows.gaps)
        return hidden_BLD

    def pool(self, rows: TokenRows) -> Tensor:
        """Run the layers; compute the last one at the last token only where that is exact."""
        only_last = self.config.pooling != "mean" and not self.config.bidirectional
        even = rows.lengths is None and rows.hidden.shape[1] > 0
        layers: list[Any] = list(self.layers)
        final = layers.pop() if layers and only_last and even else None
        hidden_BLD = self._through(layers, rows)
        if final is not None:
            return final.forward_last(hidden_BLD, rows.gaps)
        if self.config.pooling == "mean":
            return rows._replace(hidden=hidden_BLD).mean()
        if self.config.bidirectional:
            return (hidden_BLD[:, 0] + hidden_BLD[:, -1]) / 2
        return rows._replace(hidden=hidden_BLD).last()


class TwoTowerNetwork(Scanning, StreamingUsers):
    """A user tower and an item tower whose embeddings' inner product is the score."""

    config: Any
    user_tower: TowerNetwork
    item_tower: TowerNetwork
    log_temperature: nn.Parameter
    repeat_bias: nn.Parameter | None

    @property
    def temperature(self) -> Tensor:
        """Divisor of the inner product (1,)."""
        return self.log_temperature.exp()

    def scores(
        self, users_UE: Tensor, items_IE: Tensor, taken: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Score users against items: (inner product + bias of a repeat) / temperature.

        Args:
            users_UE: embeddings of users.
            items_IE: embeddings of items.
            taken: rows of users and of items, the pairs of which the item is in the user's history;
                repeats allowed. They get the `repeat_bias`, where the model has one.

        Returns:
            (U, I).
        """
        products_UI = users_UE @ items_IE.T
        temperature = self.temperature.to(products_UI.dtype)
        if taken is not None and self.repeat_bias is not None:
            is_taken_UI = torch.zeros_like(products_UI)
            is_taken_UI[taken] = 1
            products_UI = products_UI + self.repeat_bias.to(products_UI.dtype) * is_taken_UI
        in_place = not torch.is_grad_enabled()
        return products_UI.div_(temperature) if in_place else products_UI / temperature

    def get_user_embeddings(
        self,
        user_numeric: Tensor | None = None,
        user_category_ids: Tensor | None = None,
        user_set_ids: Tensor | None = None,
        user_dense: Tensor | None = None,
        user_history: Tensor | None = None,
        user_history_lengths: Tensor | None = None,
        user_event_features: Tensor | None = None,
    ) -> Tensor:
        """Embed encoded users and, where the model has a history, their events; return (U, E)."""
        output = self.user_tower(
            user_numeric, user_category_ids, user_set_ids, user_dense, user_history,
            user_history_lengths, user_event_features,
        )  # fmt: skip
        return output.embeds

    def get_user_positions(
        self,
        user_numeric: Tensor | None = None,
        user_category_ids: Tensor | None = None,
        user_set_ids: Tensor | None = None,
        user_dense: Tensor | None = None,
        user_history: Tensor | None = None,
        user_history_lengths: Tensor | None = None,
        user_event_features: Tensor | None = None,
    ) -> Tensor:
        """Embed users as of every event; return (U, S, E), see `TowerNetwork.forward_positions`."""
        return self.user_tower.forward_positions(
            user_numeric, user_category_ids, user_set_ids, user_dense, user_history,
            user_history_lengths, user_event_features,
        )  # fmt: skip

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


class Tower(TowerNetwork):
    """A tower that only embeds; its parameters are uninitialised, to be filled by a checkpoint."""

    def __init__(self, config: FTMambaTowerConfig, name: str = "record") -> None:
        super().__init__()
        self.config = config
        self.add_parts(config, name, FTMambaLayer)


class TwoTowers(TwoTowerNetwork):
    """Two towers that only embed, with the parameters of `FTMambaTwoTowerModel`, uninitialised."""

    def __init__(self, config: FTMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.user_tower = Tower(config.tower("user"), "user")
        self.item_tower = Tower(config.tower("item"), "item")
        self.log_temperature = nn.Parameter(torch.empty(1))
        self.repeat_bias = nn.Parameter(torch.empty(1)) if config.repeat_bias else None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_temperature.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.log_temperature.dtype


def _head(config: FTMambaTowerConfig) -> nn.Module:
    if not config.with_head:
        return nn.Identity()
    if not config.head_hidden_size:
        return nn.Linear(config.hidden_size, config.projection_size)
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.head_hidden_size),
        nn.GELU(),
        nn.Linear(config.head_hidden_size, config.projection_size),
    )
