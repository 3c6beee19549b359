import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftmamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ftmamba.known_users import KnownUsers
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

FILES = {
    "README.md", "all_results.json", "catalogue.py", "catalogue.safetensors", "config.json",
    "local", "model.safetensors", "modeling_ftmamba.py", "preprocessor_config.json", "recipe.yaml",
    "vocabularies.safetensors",
}  # fmt: skip


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "runs" / "quickstart"))


def test_what_is_saved_is_what_is_loaded(tiny_checkpoint: Checkpoint, folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert {path.name for path in folder.iterdir()} >= FILES
    before, after = tiny_checkpoint.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(loaded.catalogue.keys) == list(tiny_checkpoint.catalogue.keys)
    assert loaded.catalogue.embeddings.tobytes() == tiny_checkpoint.catalogue.embeddings.tobytes()
    assert loaded.extractor.to_dict() == tiny_checkpoint.extractor.to_dict()
    assert loaded.users is not None
    assert tiny_checkpoint.users is not None
    assert loaded.users.records.equals(tiny_checkpoint.users.records)
    assert loaded.results == {"NDCG@10": 0.25, "name": "Amélie"}
    assert loaded.recipe == {"seed": 7, "split": {"kind": "global-time"}}
    assert loaded.card == "# Films\n"
    assert not loaded.model.training


def test_the_catalogue_is_what_the_loaded_model_says_of_the_items(
    folder: Path, tiny_items: dict
) -> None:
    loaded = load_checkpoint(folder)
    with torch.inference_mode():
        items = loaded.model.get_item_embeddings(
            **loaded.extractor(items=tiny_items, return_tensors="pt")
        )
    np.testing.assert_allclose(items.numpy(), loaded.catalogue.embeddings, rtol=1e-5, atol=1e-6)


def test_a_model_in_training_embeds_without_dropout_and_goes_on_training(
    tiny_checkpoint: Checkpoint, tiny_items: dict
) -> None:
    config = dataclasses.replace(tiny_checkpoint.model.config, token_dropout=0.5)
    model = FTMambaTwoTowerModel(config).train()
    items = tiny_checkpoint.extractor(items=tiny_items)
    titles, keys = tiny_items["title"], tiny_items["item_id"]
    first = embed_catalogue(model, items, keys=keys, titles=titles)
    assert model.training
    second = embed_catalogue(model.eval(), items, keys=keys, titles=titles)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert not model.training


def test_without_known_users_there_is_no_local_folder(
    tiny_checkpoint: Checkpoint, folder: Path
) -> None:
    save_checkpoint(folder, dataclasses.replace(tiny_checkpoint, users=None))
    assert not (folder / "local").exists()
    assert load_checkpoint(folder).users is None


def test_a_save_that_breaks_off_leaves_the_earlier_checkpoint(
    tiny_checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: KnownUsers, folder: Path) -> None:
        raise RuntimeError("the last file of all")

    (folder / "step_10").mkdir()
    monkeypatch.setattr(KnownUsers, "save", fail)
    card = dataclasses.replace(tiny_checkpoint, card="second")
    with pytest.raises(RuntimeError, match="the last file of all"):
        save_checkpoint(folder, card)
    assert load_checkpoint(folder).card == "# Films\n"
    assert (folder / "step_10").is_dir()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_catalogue_of_other_weights_is_refused_before_anything_is_written(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    stale = dataclasses.replace(tiny_checkpoint.catalogue, fingerprint="0")
    with pytest.raises(ValueError, match="the catalogue was embedded by other weights"):
        save_checkpoint(tmp_path / "run", dataclasses.replace(tiny_checkpoint, catalogue=stale))
    assert list(tmp_path.iterdir()) == []


def test_weights_changed_after_the_save_are_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["log_temperature"] = tensors["log_temperature"] + 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match="the catalogue was embedded by other weights"):
        load_checkpoint(folder)


def test_a_missing_weight_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["log_temperature"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its config\.json: missing is log_temp"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "catalogue.safetensors", "config.json"])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated") as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "vocabularies.safetensors"])
def test_a_truncated_extractor_is_an_error_of_the_user(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises((ValueError, OSError)):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "catalogue.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.split(".")[0]):
        load_checkpoint(folder)


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="describes a model of type 'bert'"):
        load_checkpoint(folder)


def test_a_misspelt_folder_is_refused_with_the_near_one(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*did you mean 'quickstart'\?"):
        load_checkpoint(folder.parent / "quikstart")


def test_a_hub_id_is_downloaded_at_its_revision_without_local_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("ftmamba.hub.snapshot_download", download)
    load_checkpoint("somebody/films", revision="0123abc", token="hf_x")
    assert (asked["repo_id"], asked["revision"], asked["token"]) == (
        "somebody/films", "0123abc", "hf_x",
    )  # fmt: skip
    assert not any("local" in pattern for pattern in asked["allow_patterns"])


def test_a_hub_id_that_is_nowhere_is_a_missing_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'no-such/repo', and it could not be"):
        load_checkpoint("no-such/repo")


@pytest.mark.parametrize("name", ["README.md", "train.py", "config.json", "local"])
def test_a_folder_of_somebodys_own_is_not_replaced(
    tiny_checkpoint: Checkpoint, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"could replace {name}; give an empty or a new folder"):
        save_checkpoint(tmp_path, tiny_checkpoint)
    assert (tmp_path / name).read_text() == "{}"


def test_a_folder_of_a_run_takes_its_first_checkpoint(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "run" / "step_10").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1")
    save_checkpoint(tmp_path / "run", tiny_checkpoint)
    assert load_checkpoint(tmp_path / "run").recipe["seed"] == 7
    assert (tmp_path / "run" / "step_10").is_dir()


def test_code_beside_a_checkpoint_outlives_the_next_save(
    tiny_checkpoint: Checkpoint, folder: Path
) -> None:
    (folder / "my_notes.py").write_text("kept")
    save_checkpoint(folder, tiny_checkpoint)
    assert (folder / "my_notes.py").read_text() == "kept"
