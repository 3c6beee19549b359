"""`pipeline("recommendation", ...)` and the endpoint's handler, this project not installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import hub_cards
from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from tests.hub.processes import run_python
from tests.hub.server import TOKEN
from tests.travel.conftest import HERE, make_checkpoint

HANDLER = Path(hub_cards.__file__).with_name("handler.py")
REPO = "tester/pipeline-films"


@pytest.fixture(scope="module")
def checkpoint():
    return make_checkpoint()


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "films"
    save_checkpoint(folder, checkpoint)
    shutil.copyfile(HANDLER, folder / "handler.py")
    return folder


def run_bare(order, home, **environment):
    return run_python(
        HERE / "bare_pipeline.py", json.dumps(order), HF_HOME=str(home), **environment
    )


@pytest.fixture(scope="module")
def from_folder(folder, records, not_bare, tmp_path_factory):
    """What a process reports that is offline and has the folder."""
    order = {"blocked": not_bare, "place": str(folder), "records": records["users"]}
    home = tmp_path_factory.mktemp("bare-pipeline")
    return run_bare({**order, "handler": str(folder)}, home, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def from_hub(folder, hub, records, not_bare, tmp_path_factory):
    """What a process reports that knows the id of a private repository and a token, by word."""
    api = hub.api()
    api.create_repo(REPO, private=True, exist_ok=True)
    api.upload_folder(repo_id=REPO, folder_path=folder, ignore_patterns=["local/*"])
    order = {"blocked": not_bare, "place": REPO, "records": records["users"], "token": TOKEN}
    return run_bare(order, tmp_path_factory.mktemp("hub-pipeline"), **hub.environment(token=""))


@pytest.fixture(scope="module")
def expected(checkpoint, records):
    checkpoint.model.set_scan("sequential")
    recommender = Recommender(checkpoint)
    return [
        [(one.item_key, one.title, one.score) for one in found]
        for found in recommender.recommend_batch(records=records["users"], k=5)
    ]


def assert_close(answers, expected):
    assert len(answers) == len(expected) > 0
    for answer, found in zip(answers, expected, strict=True):
        assert [(one["item_key"], one["title"]) for one in answer] == [one[:2] for one in found]
        scores = [one["score"] for one in answer]
        np.testing.assert_allclose(scores, [one[2] for one in found], rtol=1e-4, atol=1e-5)


def assert_right(report, expected):
    assert report["class"] == "FTMambaRecommendationPipeline"
    assert_close([report["one"]], expected[:1])
    assert_close(report["list"], expected)
    assert_close(report["stream"], expected)
    rest = report["one"][1:]
    assert report["excluded"][:4] == rest


def test_a_folder_recommends_what_the_recommender_does(from_folder, expected):
    assert_right(from_folder, expected)
    assert from_folder["module"].startswith("transformers_modules.")


def test_nothing_of_this_project_was_imported(from_folder, not_bare):
    assert "ftmamba" in not_bare
    assert "pyarrow" in not_bare
    assert not set(from_folder["imported"]) & set(not_bare)
    assert {"transformers", "transformers_modules", "handler"} <= set(from_folder["imported"])


def test_a_private_repository_recommends_the_same(from_hub, expected):
    assert_right(from_hub, expected)
    assert from_hub["module"].startswith("transformers_modules.tester.pipeline")


def test_a_pipeline_saved_by_such_a_process_recommends_the_same(from_folder, from_hub, expected):
    assert_right(from_folder["again"], expected)
    assert_right(from_hub["again"], expected)


def test_the_folders_handler_answers_requests(from_folder, expected):
    answers = from_folder["handler"]
    assert_close([answers["one"]], expected[:1])
    assert_close(answers["list"], expected)
    assert answers["wrong"] == {
        "error": {
            "type": "bad_request",
            "message": "record 1 (the first is 0), column 'age': must be a finite number, "
            "got 'old'",
            "field": "inputs[1].age",
        }
    }
