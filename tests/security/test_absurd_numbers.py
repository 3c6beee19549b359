"""Numbers that are finite but absurd: each entrance refuses them, or answers with finite scores."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ftmamba import Recommender
from ftmamba.checkpoint import load_to_recommend, save_checkpoint
from ftmamba.streaming import CheckpointObserver
from hub_cards.handler import EndpointHandler
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor
from tests.streaming.history_checkpoint import event, make_checkpoint

from .mutations import sign_again

RECORD = {"age": 31, "gender": "F", "films": ["i01", "i02"]}
WEIGHTS, CATALOGUE = "model.safetensors", "catalogue.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("absurd") / "films"
    save_checkpoint(path, make_checkpoint())
    return path


def by_recommender(folder):
    recommender = Recommender.from_pretrained(folder)
    found = recommender.recommend(record=RECORD, k=3) + recommender.similar_items("i01", k=3)
    return [one.score for one in found] + [recommender.score(RECORD, "i01")]


def by_auto_model(folder):
    model = FTMambaTwoTowerModel.from_pretrained(folder)
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    inputs = extractor(users=[RECORD], items=[{"item_id": "i01"}] * 6, return_tensors="pt")
    return model(**inputs).scores.flatten().tolist()


def pipeline_of(folder):
    model = FTMambaTwoTowerModel.from_pretrained(folder)
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    return FTMambaRecommendationPipeline(model, extractor, folder / CATALOGUE)


def by_pipeline(folder):
    return [one["score"] for one in pipeline_of(folder)(RECORD, top_k=6)]


def by_handler(folder):
    handler = EndpointHandler.__new__(EndpointHandler)
    handler._recommend, handler._most_items = pipeline_of(folder), 20
    answer = handler({"inputs": RECORD, "parameters": {"top_k": 6}})
    if "error" in answer:
        assert answer["error"]["type"] == "bad_request"
        raise ValueError(answer["error"]["message"])
    return [one["score"] for one in answer]


def by_stream(folder):
    observer = CheckpointObserver(load_to_recommend(folder))
    state = observer.start([event("new", "i01")])
    state = observer.observe(state, [[event("new", "i01", time=1e9)]])
    state = observer.unpack(observer.pack(state))
    return observer.scores(state).flatten().tolist()


ENTRANCES = [by_recommender, by_auto_model, by_pipeline, by_handler, by_stream]


def changed(folder, target, file, name, value):
    """Copy a checkpoint with another value in a tensor, and fingerprints that fit."""
    shutil.copytree(folder, target)
    with safe_open(target / file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    tensors[name].fill_(value)
    (target / file).unlink()
    save_file(tensors, target / file, metadata)
    sign_again(target)
    return target


WRONG = [
    (WEIGHTS, "log_temperature", -200.0),
    (WEIGHTS, "log_temperature", -80.0),
    (WEIGHTS, "log_temperature", 200.0),
    (WEIGHTS, "repeat_bias", 1e38),
    (WEIGHTS, "user_tower.head.0.weight", 1e38),
    (WEIGHTS, "user_tower.norm.weight", float("nan")),
    (CATALOGUE, "embeddings", 3e38),
]


@pytest.mark.parametrize(
    ("use", "wrong"),
    [
        (use, wrong)
        for use in ENTRANCES
        for wrong in WRONG
        if wrong[0] == WEIGHTS or use is not by_auto_model  # which reads no catalogue
    ],
)
def test_every_entrance_refuses_absurd_weights(use, wrong, folder, tmp_path):
    broken = changed(folder, tmp_path / "films", *wrong)
    with pytest.raises(ValueError, match="weights"):
        use(broken)


@pytest.mark.parametrize("use", [by_recommender, by_pipeline, by_handler, by_stream])
def test_every_entrance_refuses_scores_that_are_not_finite(use, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_ftmamba.network.MOST_WEIGHT", 1e39)
    broken = changed(folder, tmp_path / "films", WEIGHTS, "user_tower.norm.weight", 3e38)
    with pytest.raises(ValueError, match="not finite"):
        use(broken)


@pytest.mark.parametrize("use", ENTRANCES)
def test_every_entrance_answers_with_sound_weights(use, folder):
    assert len(scores := use(Path(folder))) >= 6
    assert torch.tensor(scores).isfinite().all()
