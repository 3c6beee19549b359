"""The presets of the paper have the paper's parameter counts."""

import json
from pathlib import Path

import pytest
import torch

from modeling_ftmamba import FTMambaConfig, FTMambaTwoTowerModel
from modeling_ftmamba.configuration_ftmamba import MIXERS, N_SPECIAL_IDS

from .conftest import COLUMNS, HISTORY

PRESETS = Path(__file__).parents[2] / "configuration" / "presets"


def layers_of_one_embedder(preset):
    architecture = json.loads((PRESETS / f"{preset}.json").read_text())
    of_sequences = {"history_start", "max_positions"} & architecture.keys()
    users = [*COLUMNS, HISTORY] if of_sequences else COLUMNS
    model = FTMambaTwoTowerModel(FTMambaConfig.from_columns(users, COLUMNS, **architecture))
    return sum(p.numel() for p in model.user_tower.layers.parameters())


@pytest.mark.parametrize(
    ("preset", "published"), [("ft-mamba-paper", 479_232), ("ft-transformer-paper", 1_186_048)]
)
def test_layers_of_one_embedder_have_the_published_count(preset, published):
    """The layers and their norms count; tokenizer, last norm and head do not."""
    assert layers_of_one_embedder(preset) == published


def test_every_preset_builds():
    presets = sorted(path.stem for path in PRESETS.glob("*.json"))
    assert len(presets) >= 10
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


def sequence_model(preset, n_items=3416, content=(), profile=()):
    """A model of histories of so many items, known by their ids, and by content if there is."""
    history = {"name": "history", "kind": "history", "max_length": 200}
    item = {"name": "item", "kind": "categorical", "vocabulary_size": N_SPECIAL_IDS + n_items}
    architecture = json.loads((PRESETS / f"{preset}.json").read_text())
    return FTMambaTwoTowerModel(
        FTMambaConfig.from_columns([*profile, history], [item, *content], **architecture)
    )


def test_mamba4rec_has_the_published_count_on_movielens_1m():
    """Its table has one row beside the items', for padding; ours two more: missing and unseen."""
    model = sequence_model("mamba4rec")
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert n_parameters == 290_944 + (N_SPECIAL_IDS - 1) * 64


@pytest.mark.parametrize("preset", ["mamba4rec", "sasrec", "ssd4rec"])
def test_presets_of_sequences_embed_every_position(preset):
    model = sequence_model(preset, 50).eval()
    items = model.get_item_embeddings(item_category_ids=torch.arange(3, 53)[:, None])
    users = {"user_history": items[torch.tensor([[1, 4, 9], [7, 7, 0]])]}
    positions = model.get_user_positions(**users)
    assert positions.shape == (2, 4, 64)
    torch.testing.assert_close(positions[:, -1], model.get_user_embeddings(**users))


@pytest.mark.parametrize("preset", ["mamba4rec", "sasrec", "ssd4rec"])
def test_items_of_sequences_are_rows_of_one_table(preset):
    model = sequence_model(preset, 50)
    table = model.item_tower.tokenizer.kinds["category_ids"].table.weight
    ids = torch.arange(53)[:, None]
    assert torch.equal(model.get_item_embeddings(item_category_ids=ids), table)
