"""A recommender is loaded by its name, in a process of its own, over lines that break off."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from ftmamba.hub import download_checkpoint
from hub_cards.push import Destination, push_checkpoint
from tests.hub.processes import ROOT, run_python

REPO = "tester/films"
RECORD = {"age": 31, "occupation": "doctor"}
PIECE = 10 * 1024**2
"""What the Hub's client keeps of a file whose download is cut: whole pieces of this size."""


LOAD = """
import json, sys
from ftmamba import Recommender

repo, revision, record = json.loads(sys.argv[1])
recommender = Recommender.from_pretrained(repo, revision=revision)
answers = recommender.recommend(record=record, k=3)
report = {"keys": [one.item_key for one in answers], "titles": [one.title for one in answers]}
report |= {"n_items": len(recommender.catalogue), "knows_users": recommender.users is not None}
print(json.dumps(report))
"""


@pytest.fixture
def large(tiny_checkpoint, tmp_path):
    """A checkpoint whose catalogue is a little larger than one piece."""
    n_items = 30_000
    embeddings = np.random.default_rng(0).standard_normal((n_items, 8)).astype(np.float32)
    catalogue = replace(
        tiny_checkpoint.catalogue,
        keys=tuple(f"i{row}" for row in range(n_items)),
        titles=tuple(f"Film {row} " + "of a long title " * 20 for row in range(n_items)),
        embeddings=embeddings,
        records={},
    )
    folder = tmp_path / "large"
    save_checkpoint(folder, replace(tiny_checkpoint, catalogue=catalogue, card="# Films\n"))
    assert (folder / "catalogue.safetensors").stat().st_size > PIECE + 10**5
    return folder


def asked_for_catalogue(hub):
    found = hub.requests.matching(r"/_files/.*/catalogue\.safetensors", method="GET")
    return [(one.headers.get("range"), one.status) for one in found]


def test_a_recommender_is_loaded_by_name_and_goes_on_where_the_line_broke_off(
    own_hub, large, tmp_path
):
    pushed = push_checkpoint(large, Destination(REPO, private=True), api=own_hub.api())
    own_hub.faults.add(r"/_files/.*/catalogue", cut_after=PIECE + 1000)
    own_hub.faults.add(r"/_files/.*/model\.safetensors", status=503)
    (tmp_path / "home").mkdir()
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    order = json.dumps([REPO, pushed.commit, RECORD])
    found = run_python("-c", LOAD, order, **own_hub.environment(), **environment)
    expected = Recommender.from_pretrained(large).recommend(record=RECORD, k=3)
    assert found["keys"] == [one.item_key for one in expected]
    assert found["titles"] == [one.title for one in expected]
    assert (found["n_items"], found["knows_users"]) == (30_000, False)
    assert asked_for_catalogue(own_hub) == [(None, 200), (f"bytes={PIECE}-", 206)]
    statuses = [one.status for one in own_hub.requests.matching(r"/_files/.*/model\.safetensors")]
    assert statuses == [503, 200]


def test_after_a_failure_only_what_is_missing_is_fetched(here, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    push_checkpoint(folder, REPO, api=here.api())
    here.faults.add(r"/_files/.*/catalogue", times=99, status=403)
    with pytest.raises(FileNotFoundError, match=r"could not be loaded from the Hub: .*403"):
        Recommender.from_pretrained(REPO)
    fetched = here.requests.matching(r"/resolve/|/_files/", method="GET")
    whole = {one.path for one in fetched if one.status == 200}
    assert whole
    here.faults.clear()
    here.requests.clear()
    assert len(Recommender.from_pretrained(REPO).recommend(record=RECORD, k=3)) == 3
    again = {one.path for one in here.requests.matching(r"/resolve/|/_files/", method="GET")}
    assert any(path.endswith("catalogue.safetensors") for path in again)
    assert not whole & again


def test_a_private_recommender_needs_a_token_and_an_old_one_its_revision(
    here, folder, tmp_path, monkeypatch
):
    old = push_checkpoint(folder, Destination(REPO, private=True), api=here.api())
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "note: new\n")
    new = push_checkpoint(folder, REPO, api=here.api())
    cache = {"cache_dir": str(tmp_path / "cache")}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache["cache_dir"])
    texts = [
        (
            download_checkpoint(REPO, revision=one, token=None, patterns=["*"]) / "recipe.yaml"
        ).read_text()
        for one in (old.commit, new.commit)
    ]
    assert ["note: new" in text for text in texts] == [False, True]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"if it is private, give token=\.\.\."):
        Recommender.from_pretrained(REPO)
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        Recommender.from_pretrained(REPO, revision="v9", token=here.api().token)
    found = Recommender.from_pretrained(REPO, revision=new.commit, token=here.api().token)
    assert len(found.recommend(record=RECORD, k=3)) == 3


def test_a_hub_that_is_not_there_is_not_asked_again_and_again(here, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    waits = []
    monkeypatch.setattr("ftmamba.hub.Backoff.next", lambda *_: waits.append(0) or 0)
    with pytest.raises(FileNotFoundError, match="no such repository on the Hub"):
        Recommender.from_pretrained("nobody/nothing")
    assert not waits
    here.faults.add(r"/api/models/", status=500, times=99)
    with pytest.raises(FileNotFoundError, match=r"could not be loaded from the Hub: .*500"):
        Recommender.from_pretrained("nobody/nothing")
    assert len(waits) == 4
