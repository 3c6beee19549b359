"""Shapes: U users, I items."""

import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from ftmamba import Recommendation, Recommender
from ftmamba.checkpoint import Checkpoint

RECORD = {"age": 31, "occupation": "doctor"}


@pytest.fixture(scope="module")
def recommender(checkpoint_folder: Path) -> Recommender:
    return Recommender.from_pretrained(checkpoint_folder)


def keys(found: list[Recommendation]) -> list[str]:
    return [one.item_key for one in found]


def test_scores_are_inner_products_over_the_temperature(
    recommender: Recommender, tiny_checkpoint: Checkpoint
) -> None:
    """The same figures as the model's own forward, which shares no code with the recommender."""
    model, extractor = tiny_checkpoint.model, tiny_checkpoint.extractor
    with torch.inference_mode():
        users = model.get_user_embeddings(**extractor(users=RECORD, return_tensors="pt"))
    items_IE = tiny_checkpoint.catalogue.embeddings
    scores_I = items_IE.astype(np.float64) @ users[0].double().numpy() / 0.5
    found = recommender.recommend(record=RECORD, k=20)
    assert keys(found) == [tiny_checkpoint.catalogue.keys[i] for i in np.argsort(-scores_I)]
    np.testing.assert_allclose([one.score for one in found], np.sort(scores_I)[::-1], rtol=1e-5)


def test_the_best_are_the_head_of_the_whole_ranking(recommender: Recommender) -> None:
    whole = recommender.recommend(record=RECORD, k=20)
    assert recommender.recommend(record=RECORD, k=3) == whole[:3]
    assert len(set(keys(whole))) == 20


def test_a_title_belongs_to_its_item(recommender: Recommender) -> None:
    for one in recommender.recommend(record=RECORD, k=20):
        assert one.title == f"Film {one.item_key}"


def test_a_known_user_is_its_record_less_what_it_has_seen(recommender: Recommender) -> None:
    users = recommender.users
    assert users is not None
    row = users.row("u3")
    seen = {recommender.catalogue.keys[event.item] for event in users.events(row)}
    assert seen
    whole = recommender.recommend(record=users.record(row), k=20)
    assert recommender.recommend(user_key="u3", k=20, exclude_seen=False) == whole
    unseen = [one for one in whole if one.item_key not in seen]
    assert recommender.recommend(user_key="u3", k=5) == unseen[:5]
    assert recommender.recommend(user_key="u3", k=20) == unseen


def test_named_items_are_left_out(recommender: Recommender) -> None:
    whole = recommender.recommend(record=RECORD, k=20)
    best, second = keys(whole)[:2]
    found = recommender.recommend(record=RECORD, k=20, exclude=[best, "nothing of ours", second])
    assert found == whole[2:]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_batch_of_known_users_equals_each_alone(
    recommender: Recommender, exclude_seen: bool
) -> None:
    asked = ["u7", "u0", "u11", "u7"]
    batch = recommender.recommend_batch(user_keys=asked, k=6, exclude_seen=exclude_seen)
    alone = [recommender.recommend(user_key=k, k=6, exclude_seen=exclude_seen) for k in asked]
    assert [keys(found) for found in batch] == [keys(found) for found in alone]
    for one, other in zip(chain(*batch), chain(*alone), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_a_batch_of_records_equals_each_alone_across_blocks(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftmamba.recommender._USERS_AT_ONCE", 2)
    records = [RECORD, {"age": None}, {"gender": "F"}, {"age": 7, "gender": "?"}, RECORD]
    batch = recommender.recommend_batch(records=records, k=4)
    alone = [recommender.recommend(record=record, k=4) for record in records]
    assert [keys(found) for found in batch] == [keys(found) for found in alone]


def test_an_empty_batch_has_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend_batch(records=[]) == []
    assert recommender.recommend_batch(user_keys=[]) == []


def test_equal_scores_are_ordered_as_in_the_catalogue(tiny_checkpoint: Checkpoint) -> None:
    embeddings = tiny_checkpoint.catalogue.embeddings.copy()
    embeddings[:] = embeddings[0]
    catalogue = dataclasses.replace(tiny_checkpoint.catalogue, embeddings=embeddings)
    recommender = Recommender(dataclasses.replace(tiny_checkpoint, catalogue=catalogue))
    found = recommender.recommend(record=RECORD, k=7)
    assert keys(found) == list(catalogue.keys[:7])


def test_similar_items_are_the_nearest_by_cosine_without_the_item(
    recommender: Recommender,
) -> None:
    items_IE = recommender.catalogue.embeddings.astype(np.float64)
    unit_IE = items_IE / np.linalg.norm(items_IE, axis=1, keepdims=True)
    row = recommender.catalogue.row("i05")
    cosines_I = unit_IE @ unit_IE[row]
    order = [i for i in np.argsort(-cosines_I) if i != row]
    found = recommender.similar_items("i05", k=19)
    assert keys(found) == [recommender.catalogue.keys[i] for i in order]
    np.testing.assert_allclose([one.score for one in found], cosines_I[order], rtol=1e-5)


def test_the_length_of_an_item_does_not_make_it_similar(tiny_checkpoint: Checkpoint) -> None:
    scaled = tiny_checkpoint.catalogue.embeddings * np.float32([[100.0]] * 3 + [[1.0]] * 17)
    catalogue = dataclasses.replace(tiny_checkpoint.catalogue, embeddings=scaled)
    recommender = Recommender(dataclasses.replace(tiny_checkpoint, catalogue=catalogue))
    plain = Recommender(tiny_checkpoint)
    assert keys(recommender.similar_items("i05")) == keys(plain.similar_items("i05"))


def test_score_and_embedding_agree_with_recommend(recommender: Recommender) -> None:
    best = recommender.recommend(record=RECORD, k=1)[0]
    assert recommender.score(RECORD, best.item_key) == pytest.approx(best.score, rel=1e-5)
    embedding_E = recommender.user_embedding(RECORD)
    assert embedding_E.dtype == np.float32
    item_E = recommender.catalogue.embeddings[recommender.catalogue.row(best.item_key)]
    assert embedding_E @ item_E / 0.5 == pytest.approx(best.score, rel=1e-5)


def test_unseen_categories_and_missing_values_are_no_errors(recommender: Recommender) -> None:
    record = {"age": None, "gender": "never seen", "occupation": None, "shoe size": 43}
    assert len(recommender.recommend(record=record, k=5)) == 5


def test_a_value_of_the_wrong_type_is_refused_by_name(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=r"age.*thirty"):
        recommender.recommend(record={"age": "thirty"})


def test_a_user_and_a_record_at_once_are_refused(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=r"exactly one of user_key and record .*got both"):
        recommender.recommend(user_key="u1", record=RECORD)
    with pytest.raises(ValueError, match=r"exactly one of user_key and record .*got none"):
        recommender.recommend()
    with pytest.raises(ValueError, match=r"exactly one of user_key and record .*got none"):
        recommender.recommend_batch()


def test_an_unknown_user_is_refused_with_the_near_one(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=r"no user 'u12' .*did you mean 'u"):
        recommender.recommend(user_key="u12")
    with pytest.raises(ValueError, match=r"no user 'u12' .*did you mean 'u"):
        recommender.recommend_batch(user_keys=["u1", "u12"])


def test_without_known_users_a_key_is_refused_with_the_columns(
    tiny_checkpoint: Checkpoint,
) -> None:
    recommender = Recommender(dataclasses.replace(tiny_checkpoint, users=None))
    with pytest.raises(ValueError, match=r"knows no users by key.*age, gender, occupation"):
        recommender.recommend(user_key="u1")
    assert recommender.recommend(record=RECORD, k=1)


@pytest.mark.parametrize("k", [0, -1, 21, True, 2.0])
def test_a_k_out_of_range_is_refused(recommender: Recommender, k: int) -> None:
    with pytest.raises(ValueError, match=r"k must be a whole number from 1 to 20.*got"):
        recommender.recommend(record=RECORD, k=k)


def test_an_item_has_one_neighbour_less_than_the_catalogue(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 19"):
        recommender.similar_items("i05", k=20)


def test_an_unknown_item_is_refused_with_the_near_one(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=r"no item 'i5' .*did you mean"):
        recommender.similar_items("i5")


def test_damaged_weights_are_noticed(tiny_checkpoint: Checkpoint, checkpoint_folder: Path) -> None:
    recommender = Recommender.from_pretrained(checkpoint_folder)
    with torch.no_grad():
        next(recommender._model.user_tower.head.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="embedding of user record 0 is not finite"):
        recommender.recommend(record=RECORD)
