"""Checkpoints for strangers to break: one with its weights in a file, one in shards."""

import shutil
from pathlib import Path

import pytest

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from tests.streaming.history_checkpoint import make_checkpoint
from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items

__all__ = ["checkpoint_folder", "tiny_checkpoint", "tiny_items"]


@pytest.fixture(scope="session")
def sharded_folder(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tiny_checkpoint` is saved in shards; copy it before changing it."""
    folder = tmp_path_factory.mktemp("sharded") / "tiny"
    save_checkpoint(folder, tiny_checkpoint, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def history_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a checkpoint whose users have a history is saved; copy it before changing it."""
    folder = tmp_path_factory.mktemp("history") / "tiny"
    save_checkpoint(folder, make_checkpoint())
    return folder


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "runs" / "films"))


@pytest.fixture
def shards(sharded_folder: Path, tmp_path: Path) -> Path:
    """A copy in shards that a test may break."""
    return Path(shutil.copytree(sharded_folder, tmp_path / "runs" / "sharded"))
