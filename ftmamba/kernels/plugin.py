"""What `modeling_ftmamba` finds as the entry point `cpu` of the group `ftmamba.scans`."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .dropout_op import dropout, dropout_sum
from .gelu_op import gelu_dropout
from .layer_op import carried_layer, fused_layer
from .library import installed_library
from .normalize_op import normalize
from .scan_op import selective_scan, selective_scan_last

CONTRACT = 1
"""Version of the functions' signatures; checkpoints carry code of their own age."""


def dropping_layer(rate: float) -> Callable[..., Tensor]:
    """Return `fused_layer` with dropout of the mixer's output."""
    return partial(fused_layer, dropout=rate)


__all__ = [
    "CONTRACT",
    "carried_layer",
    "dropout",
    "dropout_sum",
    "dropping_layer",
    "fused_layer",
    "gelu_dropout",
    "normalize",
    "selective_scan",
    "selective_scan_last",
    "why_not",
]


def why_not() -> str | None:
    """Return why the kernels cannot run here, with the remedy, or None where they can."""
    found = installed_library()
    return found if isinstance(found, str) else None


def detail() -> str:
    """Return the instruction set in use."""
    found = installed_library()
    return "" if isinstance(found, str) else found.variant
