"""A saved model reads histories of known users and of raw records, by key, columns and time."""

import math

import numpy as np
import pandas as pd
import pytest

from ftmamba import Recommender

from .conftest import N_ITEMS, saved


@pytest.fixture(scope="module")
def recommender(walked, tmp_path_factory):
    return Recommender.from_pretrained(saved(tmp_path_factory.mktemp("walked") / "run", *walked))


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


def test_events_of_one_second_are_in_their_order_and_their_gaps_are_of_whole_seconds(recommender):
    walk = [one | {"time": 1000 + step} for step, one in enumerate(walked_from(0))]
    expected = recommender.user_embedding({"history": walk})
    parts = [one | {"time": one["time"] + 0.9 - 0.2 * step} for step, one in enumerate(walk)]
    np.testing.assert_array_equal(recommender.user_embedding({"history": parts}), expected)
    burst = [one | {"time": 1000 + step / 10} for step, one in enumerate(walk)]
    expected = recommender.user_embedding({"history": [one | {"time": 1000} for one in walk]})
    found = recommender.user_embedding({"history": burst[::-1]})
    np.testing.assert_array_equal(found, expected)


def test_an_event_of_numpy_s_types_is_the_same_event(recommender):
    walk = walked_from(0)
    kinds = {"item": np.str_, "time": np.int64, "weight": np.float32}
    of_numpy = [{name: kinds[name](value) for name, value in one.items()} for one in walk]
    expected = recommender.recommend(record={"age": 30, "history": walk}, k=3)
    for history in (of_numpy, np.array(of_numpy, dtype=object), tuple(of_numpy)):
        record = {"age": np.int8(30), "history": history}
        assert recommender.recommend(record=record, k=3) == expected
        for table in ([record], pd.DataFrame({"age": [30], "history": [list(history)]})):
            assert recommender.recommend_batch(records=table, k=3) == [expected]


def test_only_the_newest_events_count(recommender):
    walk = [f"i{step % N_ITEMS:02}" for step in range(30)]
    np.testing.assert_array_equal(
        recommender.user_embedding({"history": walk}),
        recommender.user_embedding({"history": walk[-10:]}),
    )


def test_unseen_items_and_no_items_have_embeddings(recommender):
    for history in (
        [], None, math.nan, pd.NA, np.array([]), ["never seen"], [7],
        [{"item": {"size": 4.0}}, {"item": {"item_id": "new"}}],
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
        ([{"item": "i01", "time": "yesterday"}], "time must be UTC seconds"),
        (
            [{"item": {"sizee": 4.0, "item_id": "i1"}}],
            "unknown column, got: sizee; did you mean 'size'",
        ),
        ([{"item": {"tint": 4.0}}], "an item has no known columns, got: tint; known are: item_id"),
        ([{"item": "i01", "time": 1_700_000_000_000}], "not milliseconds"),
        ([{"item": "i01", "time": 1_700_000_000_000_000}], "not milliseconds"),
        ([{"item": "i01", "time": "13.09.2020"}], "or ISO"),
        ([math.nan], "an event must be an item's key"),
        ([{"item": "i01", "weight": "much"}], "its weight a number"),
        ([{"time": 3}], "an event must be an item's key"),
        ([["i01"]], "an event must be an item's key"),
    ],
)
def test_a_history_that_is_none_is_told(recommender, history, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(record={"history": history}, k=1)


def test_a_history_has_its_share_in_a_score(recommender):
    found = recommender.explain({"age": 30, "history": ["i03", "i04"]}, "i05")
    total = found.baseline_score + sum(found.user.values()) + sum(found.item.values())
    assert total == pytest.approx(found.score, abs=1e-4)
    assert found.user["history"] > abs(found.user["age"])
    known = recommender.explain("u1", "i05")
    assert set(known.user) == {"age", "history"}
    assert not math.isnan(known.user["history"])
