"""The model, its configuration and its feature extractor: the code that travels to the Hub."""

from .columns import Column
from .configuration_ftmamba import FTMambaConfig, FTMambaTowerConfig
from .modeling_ftmamba import (
    FTMambaModel,
    FTMambaTowerOutput,
    FTMambaTwoTowerModel,
    FTMambaTwoTowerOutput,
)
from .processing_ftmamba import FTMambaFeatureExtractor

__all__ = [
    "Column",
    "FTMambaConfig",
    "FTMambaFeatureExtractor",
    "FTMambaModel",
    "FTMambaTowerConfig",
    "FTMambaTowerOutput",
    "FTMambaTwoTowerModel",
    "FTMambaTwoTowerOutput",
]
