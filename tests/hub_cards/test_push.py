from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from ftmamba import checkpoint_folder
from hub_cards import push_checkpoint
from hub_cards.push import PUBLISHED_FILES

PUBLIC = {
    "config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors",
    "modeling_ftmamba.py", "catalogue.safetensors", "README.md", "all_results.json", "recipe.yaml",
}  # fmt: skip
PRIVATE = {
    "local/users.parquet", "local/seen.safetensors", "local/config.json", "local/README.md",
    "local/load.py", "step_10/model.safetensors", "step_10/model/a.safetensors",
    "model_best/state.safetensors", "checkpoints/optimizer.bin", "events.out.tfevents", ".env",
    "logs/run.txt", ".cache/config.json", "random_states_0.pkl",
}  # fmt: skip


class RecordingApi:
    """Stands in for `HfApi`: picks the files as `upload_folder` does, and sends nothing."""

    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.uploaded: set[str] = set()

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.created = {"repo_id": repo_id, **options}

    def upload_folder(self, *, folder_path: Path, **options: Any) -> SimpleNamespace:
        assert options["repo_id"] == self.created["repo_id"]
        files = [str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()]
        self.uploaded = set(
            filter_repo_objects(
                files,
                allow_patterns=options["allow_patterns"],
                ignore_patterns=options["ignore_patterns"],
            )
        )
        return SimpleNamespace(oid="c0ffee")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PUBLIC | PRIVATE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_only_published_files_leave_the_machine(folder: Path) -> None:
    api = RecordingApi()
    assert push_checkpoint(folder, "somebody/films", private=True, api=api) == "c0ffee"
    assert api.uploaded == PUBLIC
    assert api.created == {"repo_id": "somebody/films", "private": True, "exist_ok": True}


def test_a_folder_that_is_no_checkpoint_is_not_pushed(folder: Path) -> None:
    (folder / "README.md").unlink()
    api = RecordingApi()
    with pytest.raises(FileNotFoundError, match=r"lacks README\.md; give the output_dir"):
        push_checkpoint(folder, "somebody/films", api=api)
    assert not api.created


def test_sharded_weights_are_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    api = RecordingApi()
    push_checkpoint(folder, "somebody/films", api=api)
    assert {"model-00001-of-00001.safetensors", "model.safetensors.index.json"} <= api.uploaded


def test_what_is_pushed_is_what_a_checkpoint_publishes() -> None:
    """`hub_cards` may not import `ftmamba`, so the list stands twice; this keeps it one."""
    assert PUBLISHED_FILES == checkpoint_folder.PUBLISHED_FILES
