"""Whoever has torch and transformers can load a checkpoint: this project is not needed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.processes import run_python
from tests.travel.conftest import ARCHITECTURES, HERE

CLASSES = {
    "config": "FTMambaConfig",
    "model": "FTMambaTwoTowerModel",
    "extractor": "FTMambaFeatureExtractor",
    "processor": "FTMambaFeatureExtractor",
}


def run_bare(places, records, blocked, outputs, **environment):
    order = {
        "blocked": blocked,
        "places": [str(place) for place in places],
        "records": records,
        "outputs": str(outputs),
    }
    return run_python(HERE / "bare_process.py", json.dumps(order), **environment)


@pytest.fixture(scope="module")
def bare(travelling, records, not_bare, tmp_path_factory):
    """All folders, loaded in one process that is offline."""
    home = tmp_path_factory.mktemp("bare")
    places = [one.folder for one in travelling.values()]
    report = run_bare(places, records, not_bare, home, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    outputs = [load_file(home / f"{number}.safetensors") for number in range(len(places))]
    return report, dict(zip(travelling, outputs, strict=True))


@pytest.fixture(scope="module")
def pushed(travelling, hub, hub_environment, tmp_path_factory):
    """What the process that pushed the checkpoint `mamba` to the Hub reports."""
    home = tmp_path_factory.mktemp("pusher")
    folder = str(travelling["mamba"].folder)
    script, record = HERE / "installed_process.py", json.dumps({"age": 31, "occupation": "doctor"})
    root = str(HERE.parents[1])
    return run_python(
        script,
        folder,
        "tester/films",
        record,
        PYTHONPATH=root,
        HF_HOME=str(home),
        **hub_environment,
    )


@pytest.fixture(scope="module")
def bare_from_hub(pushed, records, not_bare, hub_environment, tmp_path_factory):
    """The pushed repository, loaded by its id."""
    home = tmp_path_factory.mktemp("bare-hub")
    report = run_bare(
        ["tester/films"], records, not_bare, home, HF_HOME=str(home), **hub_environment
    )
    return report, load_file(home / "0.safetensors")


def assert_equal(outputs, expected):
    """Equal but for rounding, which another process, or another batch size, may do differently."""
    assert outputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.numel() > 0
        torch.testing.assert_close(
            outputs[name], tensor, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_gives_the_trained_models_scores(name, bare, travelling, records):
    assert_equal(bare[1][name], travelling[name].expected(records))


def test_different_architectures_give_different_scores(bare):
    scores = [outputs["scores"] for outputs in bare[1].values()]
    assert len(scores) == len(ARCHITECTURES) >= 3
    assert not any(torch.equal(scores[0], other) for other in scores[1:])


def test_the_bare_process_ran_the_checkpoints_own_code(bare, not_bare, travelling):
    report = bare[0]
    assert "_pytest" in not_bare
    assert not set(report["imported"]) & set(not_bare)
    assert {"torch", "transformers", "transformers_modules"} <= set(report["imported"])
    scans = {"mamba": "sequential", "mamba-both-ways": "sequential", "ssd": "none"}
    scans["attention"] = "none"
    assert [loaded["scan"] for loaded in report["loaded"]] == [scans[name] for name in travelling]
    for loaded in report["loaded"]:
        assert loaded["classes"] == CLASSES
        assert loaded["model_type"] == "ftmamba"
        assert all(name.startswith("transformers_modules.") for name in loaded["modules"].values())


def test_the_hub_gives_the_trained_models_scores(bare_from_hub, travelling, records):
    report, outputs = bare_from_hub
    assert_equal(outputs, travelling["mamba"].expected(records))
    (loaded,) = report["loaded"]
    assert loaded["classes"] == CLASSES
    for module in loaded["modules"].values():
        assert module.startswith("transformers_modules.tester.films.")


def test_the_hub_gets_the_checkpoint_and_nothing_personal(pushed, hub, travelling):
    files, folder = hub.files("tester/films"), travelling["mamba"].folder
    assert pushed["commit"] == hub.repositories["tester/films"].head
    assert {path.name for path in (folder / "local").iterdir()}
    assert files.pop(".gitattributes")
    assert files.pop("handler.py")
    assert files.pop("requirements.txt")
    assert set(files) == {path.name for path in folder.iterdir() if path.is_file()}
    assert not any("/" in path for path in files)
    for path, content in files.items():
        assert content == (folder / path).read_bytes(), path
    personal = [Path(path).name for path in ("local/users.parquet", "local/seen.safetensors")]
    assert not any(name in asked.path for asked in hub.requests for name in personal)


def test_a_recommender_from_the_hub_recommends_as_the_trained_model(pushed, travelling):
    checkpoint = travelling["mamba"].checkpoint
    with torch.inference_mode():
        inputs = checkpoint.extractor(users={"age": 31, "occupation": "doctor"})
        user_E = checkpoint.model.get_user_embeddings(**inputs)[0]
    items_IE = torch.from_numpy(checkpoint.catalogue.embeddings)
    scores_I = items_IE @ user_E / checkpoint.model.temperature.detach()
    best_K = scores_I.topk(5)
    assert [answer["item_key"] for answer in pushed["answers"]] == [
        checkpoint.catalogue.keys[row] for row in best_K.indices.tolist()
    ]
    assert [answer["title"] for answer in pushed["answers"]] == [
        checkpoint.catalogue.titles[row] for row in best_K.indices.tolist()
    ]
    scores = torch.tensor([answer["score"] for answer in pushed["answers"]])
    torch.testing.assert_close(scores, best_K.values, rtol=1e-5, atol=1e-6)
    assert not pushed["knows_users"]
