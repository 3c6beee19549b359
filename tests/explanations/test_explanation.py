"""`Recommender.explain`: what it is asked, what it says, the picture it draws."""

import dataclasses
import json
import struct
import sys

import numpy as np
import pytest

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.explanations import Explanation
from ftmamba.table_embedding import MOST_BYTES_A_RECORD, embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel
from modeling_ftmamba.catalogue import load_catalogue

RECORD = {"age": 31, "occupation": "doctor"}
FOUND = Explanation(
    item_key="50",
    title="Star $ Wars $",
    score=2.5,
    baseline_score=1.0,
    user={"age": 0.5, "job": -0.25},
    item={"genres": 1.25},
    user_values={"age": "31", "job": "a$b$" + "x" * 60},
    item_values={"genres": "war,\ndrama"},
)


@pytest.fixture(scope="module")
def recommender(checkpoint_folder):
    return Recommender.from_pretrained(checkpoint_folder)


def test_a_saved_checkpoint_explains_as_the_one_in_memory(recommender, tiny_checkpoint):
    found = recommender.explain(RECORD, "i07")
    assert found == Recommender(tiny_checkpoint).explain(RECORD, "i07")
    assert set(found.user) == {"age", "gender", "occupation"}
    assert found.item_values == {"item_id": "i07", "year": "1987", "genres": "drama"}
    assert (found.item_key, found.title) == ("i07", "Film i07")
    record = recommender.users.record(recommender.users.row("u3"))
    assert recommender.explain("u3", "i02") == recommender.explain(record, "i02")


@pytest.mark.parametrize(
    ("user", "item_key", "message"),
    [
        (RECORD, "i99", "no item 'i99' among the 20 of the catalogue; did you mean 'i19'"),
        ("u99", "i02", "no user 'u99' among the 12 known users"),
        ({"agee": 31}, "i02", "no known columns, got: agee; did you mean 'age'"),
        ({"age": "old"}, "i02", "'age', row 0 .*must be a finite number, got 'old'"),
    ],
)
def test_a_wrong_question_is_refused(recommender, user, item_key, message):
    with pytest.raises(ValueError, match=message):
        recommender.explain(user, item_key)


def test_a_catalogue_whose_items_are_not_the_models_explains_nothing(checkpoint_folder):
    checkpoint = load_checkpoint(checkpoint_folder)
    records = checkpoint.catalogue.records
    ids = np.full_like(records["item_category_ids"], -1)
    numbers = {name: x for name, x in records.items() if name != "item_numeric"}
    for changed, message in (
        ({}, r"holds embeddings only, .* item 'i02' cannot be taken"),
        ({**records, "item_category_ids": ids}, "hold ids in 'item_category_ids' that the vocab"),
        ({**records, "item_category_ids": ids + 2**30}, "hold ids in 'item_category_ids'"),
        (numbers, r"the columns of the items make .*'item_numeric'"),
    ):
        catalogue = dataclasses.replace(checkpoint.catalogue, records=changed)
        recommender = Recommender(dataclasses.replace(checkpoint, catalogue=catalogue))
        with pytest.raises(ValueError, match=message):
            recommender.explain(RECORD, "i02")
        assert recommender.recommend(record=RECORD)


def test_records_come_back_as_they_were_encoded(tiny_checkpoint, tiny_items, tmp_path):
    tiny_checkpoint.catalogue.save(tmp_path / "c")
    loaded = load_catalogue(tmp_path / "c")
    encoded = tiny_checkpoint.extractor(items=tiny_items)
    assert loaded.records.keys() == encoded.keys() > {"item_numeric", "item_set_ids"}
    for name, record_IS in loaded.records.items():
        np.testing.assert_array_equal(record_IS, encoded[name])
    with pytest.raises(ValueError, match="catalogue of 20 items must have one each of"):
        dataclasses.replace(loaded, records={"x": np.zeros((3, 1), np.float32)})


@pytest.mark.parametrize("width", [MOST_BYTES_A_RECORD // 4, MOST_BYTES_A_RECORD // 4 + 1])
def test_records_are_kept_up_to_a_width(width):
    extractor = FTMambaFeatureExtractor([], [{"name": "text", "kind": "vector"}])
    items = {"text": np.random.default_rng(0).standard_normal((5, width)).tolist()}
    extractor = fit_extractor(extractor, {}, items)
    config = FTMambaConfig.from_columns([], extractor.item_columns, hidden_size=8)
    model = FTMambaTwoTowerModel(config).eval()
    catalogue = embed_catalogue(model, extractor(items=items), keys=list("abcde"), titles=())
    assert bool(catalogue.records) == (width * 4 <= MOST_BYTES_A_RECORD)


def test_an_explanation_is_ranked_and_becomes_json_and_comes_back():
    assert FOUND.ranked()[0] == ("item", "genres", "war,\ndrama", 1.25)
    assert [row[1] for row in FOUND.ranked()] == ["genres", "age", "job"]
    assert Explanation(**json.loads(json.dumps(FOUND.to_dict()))) == FOUND


def test_a_picture_is_drawn(tmp_path, monkeypatch):
    FOUND.plot(tmp_path / "why.png")
    content = (tmp_path / "why.png").read_bytes()
    assert content[1:4] == b"PNG"
    assert struct.unpack(">II", content[16:24]) > (600, 200)
    FOUND.plot(tmp_path / "why.svg")
    drawn = (tmp_path / "why.svg").read_text()
    for text in ("genres = war, drama", "age = 31", "+1.25", "-0.25", "Star $ Wars $"):
        assert f"<!-- {text} -->" in drawn
    assert "from 1.00 when nothing is known to 2.50" in drawn
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib, .* pip install 'ftmamba\[plots\]'"):
        FOUND.plot(tmp_path / "none.png")
