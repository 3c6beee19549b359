"""A small checkpoint to push, and where it goes."""

import runpy
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from ftmamba.hub import Backoff
from tests.hub.server import TOKEN
from tests.made_up_tables import checkerboard, write_csv
from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items
from tests.training.conftest import forget_accelerate

__all__ = ["checkpoint_folder", "folder", "tiny_checkpoint", "tiny_items"]

SCRIPT = Path(__file__).parents[2] / "train_accelerate.py"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "projection_size": 8}

CARD = """---
license: apache-2.0
tags:
- ftmamba
---

# Films

<!-- ftmamba:begin usage -->
```python
repo, revision = "runs/latest", "main"
```
<!-- ftmamba:end usage -->
"""


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    """A copy that a test may change, with what a run leaves beside a checkpoint."""
    copy = Path(shutil.copytree(checkpoint_folder, tmp_path / "run"))
    (copy / "README.md").write_text(CARD)
    for name in (
        "checkpoints/step-1/model.safetensors", "checkpoints/step-1/optimizer.safetensors",
        "logs/run.txt", "events.out.tfevents", ".env", ".cache/config.json", "my_notes.py",
        "local/config.json", "local/README.md", "users.parquet",
    ):  # fmt: skip
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("private")
    return copy


@pytest.fixture
def here(own_hub, monkeypatch):
    """`own_hub`, with this process's client turned to it."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    template = template.replace(constants.ENDPOINT, own_hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", own_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return own_hub


@pytest.fixture
def quick(monkeypatch):
    """No wait between two tries is longer than a blink."""
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01, 0.02))


@pytest.fixture
def train():
    """Run `train_accelerate.py` in this process; returns its exit code."""
    yield runpy.run_path(str(SCRIPT))["main"]
    forget_accelerate()


@pytest.fixture
def argv(tmp_path):
    """Small tables and a recipe for a run of a second or two, as flags."""
    tables = checkerboard(14)
    recipe = {
        "data": {**write_csv(tables, tmp_path), "cache_dir": str(tmp_path / "cache")},
        "schema": tables.schema.to_dict(),
        "split": {"kind": "random", "test_fraction": 0.3},
        "model": {"preset": "ft-mamba-small", "overrides": SMALL},
        "training": {"batch_size": 32, "num_epochs": 3, "learning_rate": 0.01},
        "evaluation": {"k": [3], "selection_metric": "NDCG@3", "refit": False},
        "output_dir": str(tmp_path / "runs" / "films"),
        "push_to_hub": True,
        "hub_model_id": "tester/films",
        "hub_patience": 20,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", str(tmp_path / "recipe.yaml")]
