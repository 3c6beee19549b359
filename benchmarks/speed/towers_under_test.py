"""The project's own towers, fed with tokens: the model's own code without tokenizer and head.

Shapes: B batch, L tokens, D hidden.
"""

from typing import Any

from torch import Tensor, nn

from modeling_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTowerModel
from modeling_ftmamba.network import TokenRows


class TokenTower(nn.Module):
    """`FTMambaTowerModel` from tokens (B, L, D) to the normalised last token (B, D)."""

    def __init__(self, model: FTMambaTowerModel) -> None:
        super().__init__()
        model.set_submodule("tokenizer", nn.Identity())
        model.set_submodule("head", nn.Identity())
        self.model = model

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the embedding (B, D)."""
        return self.model.embedding_of(self.model.pool(TokenRows(hidden_BLD, None, None)))


def own_tower(
    mixer: str, size: int, *, n_layers: int, state_size: int, scan: str = "auto", **fields: Any
) -> TokenTower:
    """Build a tower of the project; its last layer computes the last token alone.

    Raises:
        RuntimeError: the scan cannot run here.
    """
    config = FTMambaTowerConfig(
        mixer=mixer,
        hidden_size=size,
        num_hidden_layers=n_layers,
        head_hidden_size=0,
        projection_size=size,
        **({} if mixer == "attention" else {"state_size": state_size}),
        **fields,
    )
    model = FTMambaTowerModel(config)
    model.set_scan(scan)
    return TokenTower(model)


def scan_in_use(tower: nn.Module) -> str:
    """Name the scan that a tower has run with."""
    return tower.model.scan_implementation if isinstance(tower, TokenTower) else "none"
