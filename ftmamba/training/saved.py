"""What a run tells of each state that it saves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftmamba.data.encoded import EncodedData
from ftmamba.training.progress import Progress
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel


@dataclass(frozen=True)
class Saved:
    """A state that was just saved; valid until the call that tells of it returns.

    Attributes:
        folder: what resuming needs.
        model: with the weights of that state, without what Accelerate puts around it.
        data: what it trains on.
        progress: where the run stands.
    """

    folder: Path
    model: FTMambaTwoTowerModel
    data: EncodedData
    progress: Progress


Watch = Callable[[Saved], None]
"""Told of each saved state, on the main process alone, while the others wait."""
