"""A process with torch and transformers can load a checkpoint: this project is not needed.

From a folder, and from a private repository on the Hub; by `AutoModel` and the other auto classes,
by `pipeline("recommendation", ...)`, and by the endpoint's handler.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import hub_cards
from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint
from hub_cards.push import Destination, push_checkpoint
from tests.hub.processes import run_python
from tests.hub.server import TOKEN
from tests.travel.conftest import ARCHITECTURES, HERE

HANDLER = Path(hub_cards.__file__).with_name("handler.py")
CLASSES = ["FTMambaConfig", "FTMambaTwoTowerModel", *["FTMambaFeatureExtractor"] * 2]
REPO = "tester/films"


def run_bare(order, home, **environment):
    order["outputs"] = str(home)
    script = HERE / "bare_process.py"
    report = run_python(script, json.dumps(order), HF_HOME=str(home), **environment)
    n_loaded = len(report["loaded"])
    return report, [load_file(home / f"{number}.safetensors") for number in range(n_loaded)]


@pytest.fixture(scope="module")
def from_folders(travelling, records, not_bare, tmp_path_factory):
    """What a process reports that is offline and has the folders."""
    home = tmp_path_factory.mktemp("bare")
    folders = {name: str(one.folder) for name, one in travelling.items()}
    handler = shutil.copytree(folders["mamba"], home / "endpoint")
    shutil.copyfile(HANDLER, handler / "handler.py")
    order = {"blocked": not_bare, "places": list(folders.values()), "records": records}
    order |= {"pipelines": [folders["mamba"]], "handler": str(handler)}
    return run_bare(order, home, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def pushed(travelling, hub):
    return push_checkpoint(
        travelling["mamba"].folder, Destination(REPO, private=True), api=hub.api()
    )


@pytest.fixture(scope="module")
def from_hub(pushed, hub, records, not_bare, tmp_path_factory):
    """What a process reports that knows the id of a private repository, and a token."""
    assert pushed.commit
    order = {"blocked": not_bare, "places": [REPO], "records": records, "token": TOKEN}
    home = tmp_path_factory.mktemp("bare-hub")
    return run_bare({**order, "pipelines": [REPO]}, home, **hub.environment(token=""))


@pytest.fixture(scope="module")
def expected(travelling, records):
    checkpoint = travelling["mamba"].checkpoint
    checkpoint.model.set_scan("sequential")
    return [
        [(one.item_key, one.title, one.score) for one in found]
        for found in Recommender(checkpoint).recommend_batch(records=records["users"], k=5)
    ]


def assert_equal(outputs, expected):
    """Equal but for rounding, which another process, or another batch size, may do differently."""
    assert outputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.numel() > 0
        torch.testing.assert_close(outputs[name], tensor, rtol=1e-6, atol=1e-6)


def assert_close(answers, expected):
    assert len(answers) == len(expected) > 0
    for answer, found in zip(answers, expected, strict=True):
        assert [(one["item_key"], one["title"]) for one in answer] == [one[:2] for one in found]
        scores = [one["score"] for one in answer]
        np.testing.assert_allclose(scores, [one[2] for one in found], rtol=1e-4, atol=1e-5)


def assert_right(report, expected):
    assert_close([report["one"]], expected[:1])
    for way in ("list", "pairs", "stream"):
        assert_close(report[way], expected)
    assert report["excluded"][:4] == report["one"][1:]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_gives_the_trained_models_scores(name, from_folders, travelling, records):
    number = list(travelling).index(name)
    assert_equal(from_folders[1][number], travelling[name].expected(records))
    scores = [outputs["scores"] for outputs in from_folders[1]]
    assert sum(torch.equal(scores[number], other) for other in scores) == 1


def test_the_bare_process_ran_the_checkpoints_own_code(from_folders, not_bare, travelling):
    report = from_folders[0]
    assert {"_pytest", "ftmamba", "pyarrow"} <= set(not_bare)
    assert not set(report["imported"]) & set(not_bare)
    assert {"transformers", "transformers_modules", "handler"} <= set(report["imported"])
    scans = {"mamba": "sequential", "mamba-both-ways": "sequential"}
    for name, loaded in zip(travelling, report["loaded"], strict=True):
        assert loaded["classes"] == CLASSES
        assert loaded["scan"] in (scans.get(name, "none"), "")
        assert all(module.startswith("transformers_modules.") for module in loaded["modules"])


def test_the_hub_gives_the_trained_models_scores(from_hub, travelling, records, expected):
    report, (outputs,) = from_hub
    assert_equal(outputs, travelling["mamba"].expected(records))
    (loaded,), (recommended,) = report["loaded"], report["recommended"]
    assert loaded["classes"] == CLASSES
    for module in (*loaded["modules"], recommended["module"]):
        assert module.startswith("transformers_modules.tester.films.")
    assert_right(recommended, expected)


def test_the_pipeline_recommends_what_the_recommender_does(from_folders, expected):
    (recommended,) = from_folders[0]["recommended"]
    assert_right(recommended, expected)
    assert recommended["module"].startswith("transformers_modules.")


def test_a_pipeline_saved_by_such_a_process_recommends_the_same(from_folders, from_hub, expected):
    for report, _ in (from_folders, from_hub):
        assert_right(report["recommended"][0]["again"], expected)


def test_the_folders_handler_answers_requests(from_folders, expected):
    answers = from_folders[0]["handler"]
    assert_close([answers["one"]], expected[:1])
    assert_close(answers["list"], expected)
    assert answers["wrong"]["error"]["field"] == "inputs[1].age"
    assert "must be a finite number, got 'old'" in answers["wrong"]["error"]["message"]


def test_a_second_folder_of_the_same_name_with_other_code_is_refused(travelling, tmp_path):
    folders = [
        shutil.copytree(travelling["mamba"].folder, tmp_path / parent / "twin") for parent in "ab"
    ]
    other = folders[1] / "network.py"
    other.write_text(other.read_text(encoding="utf-8") + "\n# newer\n", encoding="utf-8")
    AutoModel.from_pretrained(folders[0], trust_remote_code=True)
    with pytest.raises(ValueError, match=r"b/twin/network\.py' differs from the code .* rename"):
        AutoModel.from_pretrained(folders[1], trust_remote_code=True)
    renamed = folders[1].rename(tmp_path / "renamed")
    AutoModel.from_pretrained(renamed, trust_remote_code=True)
    load_checkpoint(renamed)  # runs the installed code, as its documentation says
