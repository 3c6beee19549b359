"""A run on a checkerboard, from its recipe to its comparison."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from ftmamba.comparison import compare
from ftmamba.evaluation import make_split
from ftmamba.recipe import Recipe, recipe_from_dict
from ftmamba.training.run import train
from tests.made_up_tables import checkerboard
from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items

__all__ = ["checkpoint_folder", "run", "tiny_checkpoint", "tiny_items"]

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "projection_size": 8}
RIVALS = {
    "FT-Transformer": {"preset": "ft-transformer-small", "overrides": {"hidden_size": 16}},
    "ID-only MLP": {"preset": "mlp-small", "columns": "ids", "training": {"num_epochs": 1}},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    recipe: Recipe = recipe_from_dict(
        {
            "data": {"name": "checkerboard", "cache_dir": str(folder / "cache")},
            "split": {"kind": "random", "test_fraction": 0.3},
            "model": {"preset": "ft-mamba-small", "overrides": SMALL},
            "training": {"loss": "full_softmax", "batch_size": 32, "num_epochs": 2},
            "evaluation": {
                "k": [3],
                "selection_metric": "NDCG@3",
                "baselines": ["popularity", "item-knn"],
                "tune_baselines": True,
                "rivals": RIVALS,
            },
            "examples": {"user_key": "u2", "record": {"age": 40}},
            "output_dir": str(folder / "run"),
        }
    )
    tables = checkerboard(14)
    split = make_split("random", {"test_fraction": 0.3, "seed": 1}).split(tables.interactions)
    accelerator = Accelerator(cpu=True)
    trained = train(recipe, tables, split, accelerator)
    comparison = compare(recipe, tables, split, trained, accelerator)
    return SimpleNamespace(
        recipe=recipe, tables=tables, split=split, trained=trained, comparison=comparison
    )
