"""Checkpoints that an earlier release (commit 3ffd8e3) saved load, and give the same scores.

`first_edition/` holds them, what that release computed with its definitions in plain torch, and
the code that it put beside the weights.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint, save_checkpoint
from ftmamba.streaming.state_bytes import from_bytes, to_bytes
from tests.hub.processes import run_python
from tests.travel.conftest import HERE

DATA = HERE / "first_edition"
NAMES = ("columns", "history", "history-ssd", "history-attention")


def expected_of(name):
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def assert_same_items(found, expected):
    """Compare rankings given as (key, score, ...)."""
    assert [one[0] for one in found] == [one[0] for one in expected]
    assert_near([one[1] for one in found], [one[1] for one in expected])


def test_all_files_are_there():
    assert sorted(path.stem for path in DATA.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recommender_gives_the_scores_of_then(name):
    expected, recommender = expected_of(name), Recommender.from_pretrained(DATA / name)
    keys = recommender.catalogue.keys
    for row, record in enumerate(expected["records"]):
        assert_near([recommender.score(record, key) for key in keys], expected["scores"][row])
        assert_near(recommender.user_embedding(record), expected["embeddings"][row])
        found = recommender.recommend(record=record, k=5, exclude_seen=False)
        assert_same_items(
            [(one.item_key, one.score) for one in found], expected["recommended"][row]
        )
        assert [one.title for one in found] == [one[2] for one in expected["recommended"][row]]
    for key in expected["known"]:
        for part, exclude_seen in (("known", True), ("known_repeats", False)):
            found = recommender.recommend(user_key=key, k=5, exclude_seen=exclude_seen)
            pairs = [(one.item_key, one.score) for one in found]
            assert_same_items(pairs, expected[part][key])
    similar = [(one.item_key, one.score) for one in recommender.similar_items("i03", 5)]
    assert_same_items(similar, expected["similar"])


@pytest.mark.parametrize("name", NAMES)
def test_a_recommender_gives_the_explanations_of_then(name):
    expected, recommender = expected_of(name), Recommender.from_pretrained(DATA / name)
    for user, part in (
        (expected["records"][1], "explanation"),
        ("u1", "explanation_of_known"),
    ):
        found = recommender.explain(user, "i03").to_dict()
        for tower in ("user", "item"):
            assert found[f"{tower}_values"] == expected[part][f"{tower}_values"]
            assert found[tower].keys() == expected[part][tower].keys()
            assert_near(list(found[tower].values()), list(expected[part][tower].values()))


@pytest.mark.parametrize("name", ["columns", "history"])
def test_the_code_of_then_and_of_today_give_the_scores_of_then(name, not_bare, tmp_path: Path):
    """By `AutoModel` and `pipeline`, in a process without this project."""
    then, today, expected = tmp_path / "then", tmp_path / "today", expected_of(name)
    shutil.copytree(DATA / name, then)
    with tarfile.open(DATA / "code.tar.xz") as files:
        files.extractall(then, filter="data")
    save_checkpoint(today, load_checkpoint(DATA / name))
    order = {"blocked": not_bare, "places": [], "pipelines": [str(then), str(today)]}
    order |= {"records": {"users": expected["records"]}, "outputs": str(tmp_path)}
    report = run_python(
        HERE / "bare_process.py", json.dumps(order), HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"
    )
    assert len(report["recommended"]) == 2
    for answers in report["recommended"]:
        assert answers["module"].startswith("transformers_modules.")
        for way in (answers, answers["again"]):
            for answer, recommended in zip(way["list"], expected["recommended"], strict=True):
                pairs = [(one["item_key"], one["score"]) for one in answer]
                assert_same_items(pairs, recommended)


def test_a_state_of_then_is_read_and_carried_on():
    expected, loaded = expected_of("history")["state"], load_checkpoint(DATA / "history")
    data = (DATA / "history.state").read_bytes()
    state = from_bytes(data, expected["fingerprint"])
    assert state.n_events.tolist() == expected["n_events"]
    with torch.inference_mode():
        embeds = loaded.model.embed(state)
    assert_near(embeds.numpy(), expected["embeddings"])
    assert to_bytes(state, expected["fingerprint"]) == data
