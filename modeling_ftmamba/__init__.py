"""The model, its configuration and its feature extractor: the code that travels to the Hub."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_ftmamba import Column, FTMambaConfig, FTMambaTowerConfig
    from .modeling_ftmamba import (
        FTMambaTowerModel,
        FTMambaTowerOutput,
        FTMambaTwoTowerModel,
        FTMambaTwoTowerOutput,
    )
    from .processing_ftmamba import FTMambaFeatureExtractor

__all__ = [
    "Column",
    "FTMambaConfig",
    "FTMambaFeatureExtractor",
    "FTMambaTowerConfig",
    "FTMambaTowerModel",
    "FTMambaTowerOutput",
    "FTMambaTwoTowerModel",
    "FTMambaTwoTowerOutput",
]

_MODULE_OF = {
    "Column": "configuration_ftmamba",
    "FTMambaConfig": "configuration_ftmamba",
    "FTMambaFeatureExtractor": "processing_ftmamba",
    "FTMambaTowerModel": "modeling_ftmamba",
    "FTMambaTowerConfig": "configuration_ftmamba",
    "FTMambaTowerOutput": "modeling_ftmamba",
    "FTMambaTwoTowerModel": "modeling_ftmamba",
    "FTMambaTwoTowerOutput": "modeling_ftmamba",
}


def __getattr__(name: str) -> Any:
    """Import at the first use: to recommend needs no model of Transformers, which imports much."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
