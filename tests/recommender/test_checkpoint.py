import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftmamba.checkpoint import load_checkpoint, load_to_recommend, save_checkpoint
from ftmamba.data.arrow_files import place_folder
from ftmamba.known_users import KnownUsers
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline

FILES = {
    "README.md", "all_results.json", "catalogue.py", "catalogue.safetensors", "config.json",
    "local", "model.safetensors", "modeling_ftmamba.py", "preprocessor_config.json", "recipe.yaml",
    "vocabularies.safetensors",
}  # fmt: skip


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(checkpoint_folder, tmp_path / "runs" / "quickstart")


def files_below(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_is_saved_is_what_is_loaded(tiny_checkpoint, folder, tiny_items):
    loaded = load_checkpoint(folder)
    assert {path.name for path in folder.iterdir()} >= FILES
    before, after = tiny_checkpoint.model.state_dict(), loaded.model.state_dict()
    lean = load_to_recommend(folder).model.state_dict()
    assert before.keys() == after.keys() == lean.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])
        assert torch.equal(tensor, lean[name])
    assert list(loaded.catalogue.keys) == list(tiny_checkpoint.catalogue.keys)
    assert loaded.catalogue.embeddings.tobytes() == tiny_checkpoint.catalogue.embeddings.tobytes()
    assert loaded.extractor.to_dict() == tiny_checkpoint.extractor.to_dict()
    assert loaded.users.records.equals(tiny_checkpoint.users.records)
    assert loaded.results == {"NDCG@10": 0.25, "name": "Amélie"}
    assert loaded.recipe == {"seed": 7, "split": {"kind": "global-time"}}
    assert loaded.card == "# Films\n"
    assert not loaded.model.training
    with torch.inference_mode():
        items = loaded.model.get_item_embeddings(**loaded.extractor(items=tiny_items))
    np.testing.assert_allclose(items.numpy(), loaded.catalogue.embeddings, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_saves_are_the_same_bytes_each_time_with_the_modes_of_the_umask(
    tiny_checkpoint, tmp_path, umask
):
    before = os.umask(umask)
    try:
        for number in range(8):
            save_checkpoint(tmp_path / f"{number}", tiny_checkpoint)
        loaded = load_checkpoint(tmp_path / "0")
        save_checkpoint(tmp_path / "again", loaded)
        parts = loaded.model, loaded.extractor, loaded.catalogue
        FTMambaRecommendationPipeline(*parts).save_pretrained(tmp_path / "pipeline")
        place_folder(tmp_path / "cached", lambda folder: (folder / "rows").touch())
    finally:
        os.umask(before)
    contents = [
        {str(path.relative_to(one)): path.read_bytes() for path in files_below(one)}
        for one in (tmp_path / f"{number}" for number in [*range(8), "again"])
    ]
    assert contents == [contents[0]] * 9
    for path in tmp_path.rglob("*"):
        expected = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == expected & ~umask, path


def test_without_known_users_there_is_no_local_folder(tiny_checkpoint, folder):
    save_checkpoint(folder, dataclasses.replace(tiny_checkpoint, users=None))
    assert not (folder / "local").exists()
    assert load_checkpoint(folder).users is None


def test_a_save_that_breaks_off_leaves_the_earlier_checkpoint(tiny_checkpoint, folder, monkeypatch):
    def fail(self, folder):
        raise RuntimeError("the last file of all")

    (folder / "step_10").mkdir()
    monkeypatch.setattr(KnownUsers, "save", fail)
    with pytest.raises(RuntimeError, match="the last file of all"):
        save_checkpoint(folder, dataclasses.replace(tiny_checkpoint, card="second"))
    assert load_checkpoint(folder).card == "# Films\n"
    assert (folder / "step_10").is_dir()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_catalogue_that_the_model_did_not_make_is_not_saved(tiny_checkpoint, tmp_path):
    embeddings = tiny_checkpoint.catalogue.embeddings
    not_finite = r"item 'i02' \(row 2\) is not finite"
    for change, message in (
        ({"fingerprint": "0"}, "the catalogue was embedded by other weights"),
        ({"embeddings": np.insert(embeddings[1:], 2, np.nan, 0)}, not_finite),
        ({"embeddings": np.insert(embeddings[1:], 2, -1e30, 0)}, not_finite),
    ):
        catalogue = dataclasses.replace(tiny_checkpoint.catalogue, **change)
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path, dataclasses.replace(tiny_checkpoint, catalogue=catalogue))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["another", "absent", "superfluous", "infinite"])
def test_weights_that_are_not_those_saved_are_noticed(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "log_temperature"
    message = "the catalogue was embedded by other weights"
    if change == "another":
        tensors[name] = tensors[name] + 1
    elif change == "absent":
        del tensors[name]
        message = r"does not fit its config\.json: missing is log_temperature"
    elif change == "superfluous":
        tensors["more"] = torch.zeros(1)
        message = r"does not fit its config\.json: 'more' is superfluous"
    else:
        tensors[name] = tensors[name] * torch.inf
        message = "log_temperature holds weights from -?inf to"
    save_file(tensors, path, {"format": "pt"})
    for load in (load_checkpoint, load_to_recommend):
        with pytest.raises(ValueError, match=message):
            load(folder)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "catalogue.safetensors", "config.json", "preprocessor_config.json",
     "vocabularies.safetensors"],
)  # fmt: skip
def test_a_truncated_or_missing_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated") as caught:
        load_checkpoint(folder)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name.split(".")[0]):
        load_checkpoint(folder)


def test_fields_and_files_that_are_not_ours_do_not_stop_a_load(folder, caplog):
    change_config(folder, use_cache=True, note={"of": "a person"}, num_labels=10**9)
    (folder / "training_args.bin").write_bytes(b"\x80\x04garbage")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "model.PKL").write_bytes(b"\x80\x04garbage")
    for load in (load_checkpoint, load_to_recommend):
        assert not hasattr(load(folder).model.config, "note")
    assert "training_args.bin may be a pickle" in caplog.text
    assert "deep/er/model.PKL may be a pickle" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "describes a model of type 'bert'"),
        ({"hidden_size": 2**40}, "sets hidden_size to 1099511627776, at most"),
        ({"attn_implementation": "kernels-community/evil"}, "sets attn_implementation to 'kern"),
        ({"hidden_size": "8"}, "makes no config"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder, fields, message):
    change_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_a_file_that_leaves_the_checkpoint_or_replaces_its_weights_is_refused(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leaves its checkpoint"):
        load_checkpoint(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="would be loaded in place of"):
        load_checkpoint(folder)


def test_a_misspelt_folder_is_refused_with_the_near_one(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*did you mean 'quickstart'\?"):
        load_checkpoint(folder.parent / "quikstart")


def test_a_hub_id_is_downloaded_at_its_revision_without_local_files(folder, monkeypatch):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("ftmamba.hub.snapshot_download", download)
    load_checkpoint("name/films", revision="0123abc", token="hf_x")
    given = (asked["repo_id"], asked["revision"], asked["token"])
    assert given == ("name/films", "0123abc", "hf_x")
    assert not any("local" in pattern for pattern in asked["allow_patterns"])


def test_a_hub_id_that_is_nowhere_is_a_missing_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'no-such/repo', and it could not be"):
        load_checkpoint("no-such/repo")


@pytest.mark.parametrize("name", ["README.md", "train.py", "config.json", "local"])
def test_a_folder_of_another_kind_is_not_replaced(tiny_checkpoint, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"could replace {name}; give an empty or a new folder"):
        save_checkpoint(tmp_path, tiny_checkpoint)
    assert (tmp_path / name).read_text() == "{}"


def test_what_is_not_of_a_checkpoint_stays_beside_it(tiny_checkpoint, tmp_path):
    (tmp_path / "run" / "step_10").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1")
    save_checkpoint(tmp_path / "run", tiny_checkpoint)
    (tmp_path / "run" / "my_notes.py").write_text("kept")
    save_checkpoint(tmp_path / "run", tiny_checkpoint)
    assert load_checkpoint(tmp_path / "run").recipe["seed"] == 7
    assert (tmp_path / "run" / "step_10").is_dir()
    assert (tmp_path / "run" / "my_notes.py").read_text() == "kept"


def test_a_catalogue_of_a_model_in_training_is_embedded_without_dropout(
    tiny_checkpoint, tiny_items
):
    config = dataclasses.replace(tiny_checkpoint.model.config, token_dropout=0.5)
    model = FTMambaTwoTowerModel(config).train()
    items = tiny_checkpoint.extractor(items=tiny_items)
    parts = {"keys": tiny_items["item_id"], "titles": tiny_items["title"]}
    first = embed_catalogue(model, items, **parts)
    assert model.training
    second = embed_catalogue(model.eval(), items, **parts)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert not model.training
