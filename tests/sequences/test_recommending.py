"""A saved model reads histories of known users and of raw records, by key, columns and time."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from ftmamba.comparison import compare
from ftmamba.results import make_checkpoint
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline

from .conftest import N_ITEMS


@pytest.fixture(scope="module")
def recommender(walked, tmp_path_factory):
    recipe, tables, split, trained = walked
    comparison = compare(recipe, tables, split, trained, Accelerator(cpu=True))
    folder = tmp_path_factory.mktemp("walked") / "run"
    save_checkpoint(folder, make_checkpoint(recipe, tables, split, trained, comparison))
    return Recommender.from_pretrained(folder)


def best(recommender, history, **columns):
    record = {**columns, "history": history}
    return recommender.recommend(record=record, k=1)[0].item_key


def walked_from(item, length=5):
    """Return events as those of training: with times and weights."""
    return [
        {"item": f"i{(item + step) % N_ITEMS:02}", "time": 1000 * step, "weight": 1.0 + step % 5}
        for step in range(length)
    ]


def test_what_comes_next_follows_from_a_records_history(recommender):
    for item in range(N_ITEMS):
        walk = walked_from(item)
        assert best(recommender, walk, age=30) == f"i{(item + 5) % N_ITEMS:02}"


def test_a_known_user_is_read_with_what_was_taken(recommender, walked):
    _, tables, split, _ = walked
    users = [tables.user_keys[user] for user in split.test.user_ids]
    items = [tables.item_keys[item] for item in split.test.item_ids]
    lists = recommender.recommend_batch(user_keys=users, k=1, exclude_seen=False)
    assert np.mean([one[0].item_key == item for one, item in zip(lists, items, strict=True)]) > 0.95
    (one,) = recommender.recommend(user_key=users[0], k=1, exclude_seen=False)
    assert one.item_key == lists[0][0].item_key
    assert one.score == pytest.approx(lists[0][0].score, rel=1e-4)


def test_events_with_times_are_put_in_their_order_and_others_stay(recommender):
    timed = walked_from(0)
    shuffled = [timed[place] for place in (3, 0, 4, 2, 1)]
    assert best(recommender, shuffled) == best(recommender, timed) == "i05"
    starts = ["00:00:00", "00:16:40", "00:33:20", "00:50:00", "01:06:40"]
    texts = [
        {**one, "time": f"1970-01-01T{start}Z"} for one, start in zip(timed, starts, strict=True)
    ]
    expected = recommender.user_embedding({"history": timed})
    np.testing.assert_allclose(recommender.user_embedding({"history": texts}), expected, atol=1e-6)
    untimed = [{**one, "time": None} for one in shuffled]
    sorted_ = recommender.user_embedding({"history": [{**one, "time": None} for one in timed]})
    assert np.abs(recommender.user_embedding({"history": untimed}) - sorted_).max() > 0.01


def test_only_the_newest_events_count(recommender):
    walk = [f"i{step % N_ITEMS:02}" for step in range(30)]
    np.testing.assert_array_equal(
        recommender.user_embedding({"history": walk}),
        recommender.user_embedding({"history": walk[-10:]}),
    )


def test_unseen_items_and_no_items_have_embeddings(recommender):
    for history in (
        [], None, ["never seen"], [{"item": {"size": 4.0}}, {"item": {"item_id": "new"}}], [7],
    ):  # fmt: skip
        embedding = recommender.user_embedding({"age": 30, "history": history})
        assert np.isfinite(embedding).all()
    np.testing.assert_array_equal(
        recommender.user_embedding({"age": 30, "history": []}),
        recommender.user_embedding({"age": 30}),
    )


def test_an_item_given_by_its_columns_is_read_as_the_one_of_the_catalogue(recommender):
    by_columns = [{"item": {"item_id": f"i{item:02}", "size": float(item)}} for item in range(4)]
    by_key = [f"i{item:02}" for item in range(4)]
    np.testing.assert_allclose(
        recommender.user_embedding({"history": by_columns}),
        recommender.user_embedding({"history": by_key}),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("i01", "must be a list of events, oldest first, got 'i01'"),
        ({"item": "i01"}, "must be a list of events"),
        ([None], "an event must be an item's key"),
        ([{"tiem": 3, "item": "i01"}], "an event has no 'tiem'; did you mean 'time'"),
        ([{"item": "i01", "time": "yesterday"}], "time must be UTC seconds or an ISO text"),
        ([{"item": "i01", "weight": "much"}], "its weight a number"),
        ([{"time": 3}], "an event must be an item's key"),
        ([["i01"]], "an event must be an item's key"),
    ],
)
def test_a_history_that_is_none_is_told(recommender, history, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(record={"history": history}, k=1)


def test_the_pipeline_reads_the_same_histories(recommender):
    pipe = FTMambaRecommendationPipeline(
        recommender._model, recommender._extractor, recommender.catalogue, device="cpu",
        task="recommendation",
    )  # fmt: skip
    records = [{"age": 30, "history": ["i03", "i04"]}, {"history": []}, {"age": 41}]
    expected = recommender.recommend_batch(records=records, k=3)
    for found, wanted in zip(pipe(records, top_k=3), expected, strict=True):
        assert [one["item_key"] for one in found] == [one.item_key for one in wanted]
        scores = [one["score"] for one in found]
        np.testing.assert_allclose(scores, [one.score for one in wanted], rtol=1e-5)


def test_a_history_has_its_share_in_a_score(recommender):
    found = recommender.explain({"age": 30, "history": ["i03", "i04"]}, "i05")
    total = found.baseline_score + sum(found.user.values()) + sum(found.item.values())
    assert total == pytest.approx(found.score, abs=1e-4)
    assert found.user["history"] > abs(found.user["age"])
    known = recommender.explain("u1", "i05")
    assert set(known.user) == {"age", "history"}
    assert not math.isnan(known.user["history"])


def test_streaming_states_give_the_embeddings_of_histories(recommender):
    model = recommender._model
    items_IE = torch.from_numpy(recommender.catalogue.embeddings)
    walk = torch.arange(6)
    inputs = recommender._extractor(users=[{"age": 30}])
    with torch.inference_mode():
        state = model.start(**inputs)
        for item in walk:
            state = model.observe(state, items_IE[item][None, None])
        streamed = model.embed(state)[0].numpy()
    whole = recommender.user_embedding({"age": 30, "history": [f"i{item:02}" for item in walk]})
    np.testing.assert_allclose(streamed, whole, atol=1e-5)
