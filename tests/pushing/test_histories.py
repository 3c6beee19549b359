"""A model that reads histories goes to the Hub and, loaded by name, follows a user from there."""

import json
from dataclasses import replace

import torch
from safetensors.torch import load_file

from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from hub_cards.push import Destination, push_checkpoint
from tests.hub.processes import run_python
from tests.streaming.history_checkpoint import make_checkpoint

REPO = "tester/histories"
PROFILE = {"age": 31, "gender": "F"}
ITEMS = {"item_id": ["i03", "never seen", "i07"], "year": [1983.0, 1990.0, 1987.0]}
FEATURES = [[0.0, 4.0, 1.0, 2.0], [3.5, 2.0, 0.0, 1.0], [5.0, 5.0, 1.0, 0.0]]


FOLLOW = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoModel, pipeline

order = json.loads(sys.argv[1])
place = {"revision": order["revision"], "trust_remote_code": True}
model = AutoModel.from_pretrained(order["repo"], **place).eval()
processor = AutoFeatureExtractor.from_pretrained(order["repo"], **place)
with torch.inference_mode():
    items = model.get_item_embeddings(**processor(items=order["items"]))
    state = model.start(**processor(users=order["record"]))
    for item, feature in zip(items, torch.tensor(order["features"]), strict=True):
        state = model.observe(state, item[None, None], event_features=feature[None, None])
    followed = model.embed(state)
save_file({"followed": followed.clone()}, order["outputs"])
recommend = pipeline("recommendation", model=order["repo"], **place)
keys = [one["item_key"] for one in recommend(order["raw"], top_k=3)]
print(json.dumps({"class": type(model).__name__, "keys": keys}))
"""


def test_a_history_model_from_the_hub_follows_a_user_and_recommends(own_hub, tmp_path):
    checkpoint = make_checkpoint()
    save_checkpoint(tmp_path / "run", replace(checkpoint, card="# Films\n"))
    pushed = push_checkpoint(tmp_path / "run", Destination(REPO, private=True), api=own_hub.api())
    home = tmp_path / "home"
    home.mkdir()
    raw = {**PROFILE, "films": ["i03", {"item": {"year": 1990.0}}, "i07"]}
    order = {
        "repo": REPO, "revision": pushed.commit, "record": PROFILE, "items": ITEMS,
        "features": FEATURES, "raw": raw, "outputs": str(home / "followed.safetensors"),
    }  # fmt: skip
    environment = {**own_hub.environment(), "HF_HOME": str(home)}
    found = run_python("-c", FOLLOW, json.dumps(order), **environment)
    assert found["class"] == "FTMambaTwoTowerModel"
    recommended = Recommender.from_pretrained(tmp_path / "run").recommend(record=raw, k=3)
    assert found["keys"] == [one.item_key for one in recommended]
    model, processor = checkpoint.model.eval(), checkpoint.extractor
    with torch.no_grad():
        items_TE = model.get_item_embeddings(**processor(items=ITEMS))
        whole = model.get_user_embeddings(
            **processor(users=PROFILE),
            user_history=items_TE[None],
            user_history_lengths=torch.tensor([len(items_TE)]),
            user_event_features=torch.tensor(FEATURES)[None],
        )
    followed = load_file(order["outputs"])["followed"]
    torch.testing.assert_close(followed, whole, rtol=1e-5, atol=1e-5)
