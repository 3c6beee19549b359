"""Shapes: U users, I items."""

import dataclasses
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ftmamba import Recommender

RECORD = {"age": 31, "occupation": "doctor"}


@pytest.fixture(scope="module")
def recommender(checkpoint_folder):
    return Recommender.from_pretrained(checkpoint_folder)


def with_embeddings(checkpoint, embeddings):
    catalogue = dataclasses.replace(checkpoint.catalogue, embeddings=embeddings)
    return Recommender(dataclasses.replace(checkpoint, catalogue=catalogue))


def keys(found):
    return [one.item_key for one in found]


def test_scores_are_inner_products_over_the_temperature(recommender, tiny_checkpoint):
    """The same figures as the model's own forward, which shares no code with the recommender."""
    model, extractor = tiny_checkpoint.model, tiny_checkpoint.extractor
    with torch.inference_mode():
        users = model.get_user_embeddings(**extractor(users=RECORD))
    items_IE = tiny_checkpoint.catalogue.embeddings
    scores_I = items_IE.astype(np.float64) @ users[0].double().numpy() / 0.5
    found = recommender.recommend(record=RECORD, k=20)
    assert keys(found) == [tiny_checkpoint.catalogue.keys[i] for i in np.argsort(-scores_I)]
    np.testing.assert_allclose([one.score for one in found], np.sort(scores_I)[::-1], rtol=1e-5)
    assert all(one.title == f"Film {one.item_key}" for one in found)
    assert recommender.score(RECORD, found[0].item_key) == pytest.approx(found[0].score, rel=1e-5)
    embedding_E = recommender.user_embedding(RECORD)
    assert embedding_E.dtype == np.float32
    np.testing.assert_allclose(embedding_E, users[0].numpy(), rtol=1e-5)


def test_the_best_are_the_head_of_the_whole_ranking_less_named_items(recommender):
    whole = recommender.recommend(record=RECORD, k=20)
    assert len(set(keys(whole))) == 20
    assert recommender.recommend(record=RECORD, k=3) == whole[:3]
    exclude = [whole[0].item_key, "nothing of ours", whole[1].item_key]
    assert recommender.recommend(record=RECORD, k=20, exclude=exclude) == whole[2:]


def test_a_known_user_is_its_record_less_its_seen_items(recommender):
    users = recommender.users
    row = users.row("u3")
    seen = {recommender.catalogue.keys[event.item] for event in users.events(row)}
    assert seen
    whole = recommender.recommend(record=users.record(row), k=20)
    assert recommender.recommend(user_key="u3", k=20, exclude_seen=False) == whole
    unseen = [one for one in whole if one.item_key not in seen]
    assert recommender.recommend(user_key="u3", k=5) == unseen[:5]
    assert recommender.recommend(user_key="u3", k=20) == unseen


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_batch_equals_each_alone_across_blocks(recommender, monkeypatch, exclude_seen):
    monkeypatch.setattr("ftmamba.recommender._USERS_AT_ONCE", 2)
    records = [RECORD, {"age": None}, {"gender": "F"}, {"age": 7, "gender": "?"}, RECORD]
    for name, asked in (("user_key", ["u7", "u0", "u11", "u7"]), ("record", records)):
        options = {"k": 6, "exclude_seen": exclude_seen}
        batch = recommender.recommend_batch(**{f"{name}s": asked}, **options)
        alone = [recommender.recommend(**{name: one}, **options) for one in asked]
        assert [keys(found) for found in batch] == [keys(found) for found in alone]
        scores = [[[one.score for one in found] for found in way] for way in (batch, alone)]
        for found, expected in zip(*scores, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert recommender.recommend_batch(**{f"{name}s": []}) == []


def test_equal_scores_are_ordered_as_in_the_catalogue(tiny_checkpoint):
    embeddings = np.repeat(tiny_checkpoint.catalogue.embeddings[:1], 20, axis=0)
    found = with_embeddings(tiny_checkpoint, embeddings).recommend(record=RECORD, k=7)
    assert keys(found) == list(tiny_checkpoint.catalogue.keys[:7])


def test_similar_items_are_the_nearest_by_cosine_without_the_item(recommender, tiny_checkpoint):
    items_IE = recommender.catalogue.embeddings.astype(np.float64)
    unit_IE = items_IE / np.linalg.norm(items_IE, axis=1, keepdims=True)
    row = recommender.catalogue.row("i05")
    cosines_I = unit_IE @ unit_IE[row]
    order = [i for i in np.argsort(-cosines_I) if i != row]
    found = recommender.similar_items("i05", k=19)
    assert keys(found) == [recommender.catalogue.keys[i] for i in order]
    np.testing.assert_allclose([one.score for one in found], cosines_I[order], rtol=1e-5)
    longer = recommender.catalogue.embeddings * np.float32([[100.0]] * 3 + [[1.0]] * 17)
    longer_items = with_embeddings(tiny_checkpoint, longer)
    assert keys(longer_items.similar_items("i05", k=19)) == keys(found)


def test_unseen_categories_and_missing_values_are_no_errors(recommender):
    record = {"age": None, "gender": "never seen", "occupation": None, "shoe size": 43}
    assert len(recommender.recommend(record=record, k=5)) == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"record": {"age": "thirty"}}, "age.*thirty"),
        ({"user_key": "u1", "record": RECORD}, "exactly one of user_key and record .*got both"),
        ({}, "exactly one of user_key and record .*got none"),
        ({"record": RECORD, "exclude_seen": "no"}, "exclude_seen must be True, False or None"),
        ({"record": pd.Series(RECORD)}, r"record, row 0 .* must be a dict [^\n]*got age [^\n]*$"),
        (
            {"record": RECORD, "exclude": pa.array(["i03"])},
            r"an item's key must be a single text, .*got <pyarrow.StringScalar: 'i03'>$",
        ),
        ({"user_key": "u12"}, "no user 'u12' .*did you mean 'u"),
        *(
            ({"record": RECORD, "k": k}, "k must be .* from 1 to 20")
            for k in (0, -1, 21, True, 2.0)
        ),
    ],
)
def test_a_wrong_question_is_refused(recommender, asked, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**asked)


@pytest.fixture(scope="module")
def of_numbers(tiny_checkpoint):
    """The recommender, its items and users called by numbers."""
    records = tiny_checkpoint.users.records
    codes = pa.array(range(100, 100 + len(records)))
    users = dataclasses.replace(
        tiny_checkpoint.users, records=records.set_column(0, "user_id", codes)
    )
    catalogue = dataclasses.replace(tiny_checkpoint.catalogue, keys=[*map(str, range(30, 50))])
    return Recommender(dataclasses.replace(tiny_checkpoint, catalogue=catalogue, users=users))


@pytest.mark.parametrize("asked", [str, int, float, np.int16, np.float32, Decimal, "{}.0".format])
def test_a_key_has_one_meaning_whatever_its_type(of_numbers, asked):
    kept = {one.item_key for one in of_numbers.recommend(record=RECORD, k=20)}
    excluded = of_numbers.recommend(record=RECORD, k=20, exclude=map(asked, (33, 41)))
    assert kept - {one.item_key for one in excluded} == {"33", "41"}
    assert of_numbers.similar_items(asked(33)) == of_numbers.similar_items("33")
    assert of_numbers.score(RECORD, asked(33)) == of_numbers.score(RECORD, "33")
    known = of_numbers.recommend(user_key="103")
    assert of_numbers.recommend(user_key=asked(103)) == known
    assert of_numbers.recommend_batch(user_keys=[asked(103)]) == [known]
    assert of_numbers.explain(asked(103), asked(33)) == of_numbers.explain("103", "33")


@pytest.mark.parametrize("exclude", ["33", b"33", 33, {"33": 1}, [["33"]], None])
def test_what_is_no_list_of_keys_excludes_nothing_in_silence(of_numbers, exclude):
    rule = r"exclude must be a list of item keys, as in \['50'|an item's key must be a single text"
    with pytest.raises(ValueError, match=rule):
        of_numbers.recommend(record=RECORD, exclude=exclude)


def test_an_item_has_one_neighbour_less_than_the_catalogue(recommender):
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 19"):
        recommender.similar_items("i05", k=20)
    with pytest.raises(ValueError, match=r"no item 'i5' .*did you mean"):
        recommender.similar_items("i5")
    with pytest.raises(ValueError, match="an item's key must be a single text"):
        recommender.similar_items(["i5"])


def test_without_known_users_a_key_is_refused_with_the_columns(tiny_checkpoint):
    recommender = Recommender(dataclasses.replace(tiny_checkpoint, users=None))
    with pytest.raises(ValueError, match=r"knows no users by key.*age, gender, occupation"):
        recommender.recommend(user_key="u1")
    assert recommender.recommend(record=RECORD, k=1)


def test_damaged_weights_are_noticed(checkpoint_folder):
    recommender = Recommender.from_pretrained(checkpoint_folder)
    with torch.no_grad():
        next(recommender._model.user_tower.head.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"user record, row 0 .*: its scores are not finite"):
        recommender.recommend(record=RECORD)


LEAN = """
import sys
from ftmamba import Recommender
found = Recommender.from_pretrained(sys.argv[1]).recommend(record={"age": 31}, k=3)
heavy = {"transformers.modeling_utils", "transformers.pipelines", "datasets", "accelerate"}
print(len(found), sorted(heavy & set(sys.modules)))
"""


def test_to_recommend_imports_no_model_classes_of_transformers(checkpoint_folder):
    command = [sys.executable, "-c", LEAN, str(checkpoint_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3 []", done.stderr[-2000:]
