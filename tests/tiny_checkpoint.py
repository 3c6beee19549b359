"""Fixtures: a tiny recommender, and a folder that holds it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import known_users
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor


@pytest.fixture(scope="session")
def tiny_items() -> dict[str, list]:
    """Twenty raw items."""
    return {
        "item_id": [f"i{row:02}" for row in range(20)],
        "title": [f"Film i{row:02}" for row in range(20)],
        "year": [1980.0 + row for row in range(20)],
        "genres": [["drama", "war"][: row % 3] for row in range(20)],
    }


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_items: dict[str, list]) -> Checkpoint:
    """An untrained recommender of twelve users and twenty items."""
    users = pa.table(
        {
            "user_id": [f"u{row}" for row in range(12)],
            "age": [20 + 3 * row for row in range(12)],
            "gender": ["F", "M", None] * 4,
            "occupation": ["doctor", "artist", "nurse"] * 4,
        }
    )
    rng = np.random.default_rng(0)
    user_ids, item_ids = rng.integers(12, size=40), rng.integers(20, size=40)
    interactions = Interactions(user_ids, item_ids, None, None, n_users=12, n_items=20)
    extractor = FTMambaFeatureExtractor(
        user_columns=[
            {"name": "age", "kind": "numeric"},
            {"name": "gender", "kind": "categorical"},
            {"name": "occupation", "kind": "categorical"},
        ],
        item_columns=[
            {"name": "item_id", "kind": "categorical"},
            {"name": "year", "kind": "numeric"},
            {"name": "genres", "kind": "categories"},
        ],
        user_key="user_id",
        item_key="item_id",
    )
    extractor = fit_extractor(extractor, users, pa.table(tiny_items))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "state_size": 4, "head_hidden_size": 16, "projection_size": 8}
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, temperature=0.5, **sizes
    )
    model = FTMambaTwoTowerModel(config).eval()
    catalogue = embed_catalogue(
        model,
        extractor(items=tiny_items),
        keys=tiny_items["item_id"],
        titles=tiny_items["title"],
        as_of=893286638,
    )
    return Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=catalogue,
        users=known_users(
            users, interactions, key="user_id", columns=["age", "gender", "occupation"]
        ),
        card="# Films\n",
        results={"NDCG@10": 0.25, "name": "Amélie"},
        recipe={"seed": 7, "split": {"kind": "global-time"}},
    )


@pytest.fixture(scope="session")
def checkpoint_folder(
    tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where `tiny_checkpoint` is saved; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_checkpoint(folder, tiny_checkpoint)
    return folder
