"""The presets of the paper have the paper's parameter counts."""

import json
from pathlib import Path

import pytest

from modeling_ftmamba import FTMambaConfig, FTMambaTwoTowerModel
from modeling_ftmamba.configuration_ftmamba import MIXERS

from .conftest import COLUMNS

PRESETS = Path(__file__).parents[2] / "configuration" / "presets"


def layers_of_one_embedder(preset):
    architecture = json.loads((PRESETS / f"{preset}.json").read_text())
    model = FTMambaTwoTowerModel(FTMambaConfig.from_columns(COLUMNS, COLUMNS, **architecture))
    return sum(p.numel() for p in model.user_tower.layers.parameters())


@pytest.mark.parametrize(
    ("preset", "published"), [("ft-mamba-paper", 479_232), ("ft-transformer-paper", 1_186_048)]
)
def test_layers_of_one_embedder_have_the_published_count(preset, published):
    """The layers and their norms count; tokenizer, last norm and head do not."""
    assert layers_of_one_embedder(preset) == published


def test_every_preset_builds():
    presets = sorted(path.stem for path in PRESETS.glob("*.json"))
    assert len(presets) >= 6
    without_layers = [preset for preset in presets if not layers_of_one_embedder(preset)]
    assert without_layers == ["mlp-small"]


def test_every_mixer_has_a_small_preset_of_about_the_same_size():
    presets = [path.stem for path in PRESETS.glob("*-small.json")]
    sizes = {preset: layers_of_one_embedder(preset) for preset in presets}
    mixers = [
        json.loads((PRESETS / f"{preset}.json").read_text())["mixer"]
        for preset in presets
        if sizes[preset]
    ]
    assert sorted(mixers) == sorted(MIXERS)
    assert max(sizes.values()) < 1.1 * min(size for size in sizes.values() if size)
