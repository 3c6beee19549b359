"""People whose next step follows from what they paid last: numbers beside events, the whole way."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from ftmamba import Recommender
from ftmamba.data.encoded import encode
from ftmamba.data.histories import histories_of
from ftmamba.data.tables import load_tables
from ftmamba.training.embedding import catalogue_embeddings, user_embeddings
from ftmamba.training.run import split_tables
from modeling_ftmamba.configuration_ftmamba import history_of
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline

from .conftest import hit_rate, ring_recipe, saved, trained_on

N_USERS, N_ITEMS, LENGTH = 80, 10, 16
CHEAP, DEAR = 1000.0, 1500.0
FEATURES = ("gap", "price")


def forked_tables(features=FEATURES, *, spoil=None):
    """Return tables of users who go one step on after a cheap event, and four after a dear one."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        item = int(rng.integers(N_ITEMS))
        for step in range(LENGTH):
            dear = bool(rng.integers(2))
            price = (DEAR if dear else CHEAP) + float(rng.integers(50))
            rows.append((f"u{user}", f"i{item}", 1000 * step + user, price))
            item = (item + (4 if dear else 1)) % N_ITEMS
    users, items, times, prices = (list(column) for column in zip(*rows, strict=True))
    if spoil is not None:
        prices = spoil(np.array(prices), np.array(times) // 1000)
    history = {"kind": "history", "max_length": 10, "event_features": list(features)}
    return load_tables(
        pa.table({"user_id": [f"u{user}" for user in range(N_USERS)]}),
        pa.table({"item_id": [f"i{item}" for item in range(N_ITEMS)]}),
        pa.table({"user_id": users, "item_id": items, "time": times, "price": prices}),
        {
            "users": {"key": "user_id", "columns": {"history": history}},
            "items": {"key": "item_id", "columns": {"item_id": "categorical"}},
            "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
        },
    )


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    tables = forked_tables()
    recipe = ring_recipe(tmp_path_factory.mktemp("forked"))
    return recipe, tables, *trained_on(recipe, tables)


@pytest.fixture(scope="module")
def checkpoint_folder(forked, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("forked") / "run", *forked)


@pytest.fixture(scope="module")
def recommender(checkpoint_folder):
    return Recommender.from_pretrained(checkpoint_folder)


def walk(last_price, n=4):
    return [
        *({"item": f"i{step}", "time": 1000 * step, "price": CHEAP} for step in range(n - 1)),
        {"item": f"i{n - 1}", "time": 1000 * (n - 1), "price": last_price},
    ]


def test_what_comes_next_is_learnt_from_the_context_of_the_last_event(forked):
    recipe, _, split, trained = forked
    assert hit_rate(recipe, split, trained) > 0.95


def test_without_the_context_it_is_a_guess_between_two(tmp_path):
    recipe = ring_recipe(tmp_path)
    assert 0.3 < hit_rate(recipe, *trained_on(recipe, forked_tables(features=("gap",)))) < 0.7


def test_scales_are_of_the_training_part_and_travel_with_the_model(forked, checkpoint_folder):
    _, _, split, trained = forked
    prices = split.train.context["price"].astype(np.float64)
    found = history_of(trained.data.extractor.columns("user")).event_scales
    assert found == ((0.0, 1.0), (pytest.approx(prices.mean()), pytest.approx(prices.std())))
    scales = [list(scale) for scale in found]
    config = json.loads((checkpoint_folder / "config.json").read_text("utf-8"))
    assert config["user_tower"]["columns"][0]["event_scales"] == scales
    read = json.loads((checkpoint_folder / "preprocessor_config.json").read_text("utf-8"))
    assert read["user_columns"][0]["event_scales"] == scales
    assert trained.model.user_tower.tokenizer.history.scales == found


def test_numbers_outside_the_training_part_change_nothing_of_it(forked, tmp_path):
    _, _, split, trained = forked
    spoilt = forked_tables(spoil=lambda prices, steps: np.where(steps >= LENGTH - 2, 1e9, prices))
    other = split_tables(spoilt, ring_recipe(tmp_path))
    assert (other.test.context["price"] == 1e9).all()
    assert (other.validation.context["price"] == 1e9).all()
    data = encode(spoilt, other.train, cache_dir=tmp_path)
    assert data.extractor.to_dict() == trained.data.extractor.to_dict()
    assert len(split.train) == len(other.train) == N_USERS * (LENGTH - 2)


def test_a_record_is_read_as_training_reads_its_events(forked, recommender):
    _, tables, split, trained = forked
    histories = histories_of(split.before_test)
    users = torch.arange(5)
    items = catalogue_embeddings(trained.model, trained.data, None)
    expected = user_embeddings(trained.model, trained.data, users, items, histories)
    for user, wanted in zip(users.tolist(), expected, strict=True):
        rows = np.flatnonzero(split.before_test.user_ids == user)
        rows = rows[np.argsort(split.before_test.times[rows])]
        record = {
            "history": [
                {
                    "item": tables.item_keys[split.before_test.item_ids[row]],
                    "time": int(split.before_test.times[row]),
                    "price": split.before_test.context["price"][row],
                }
                for row in rows
            ]
        }
        np.testing.assert_allclose(recommender.user_embedding(record), wanted, atol=1e-5)


def test_a_record_says_what_comes_next_by_its_context(recommender):
    pipe = FTMambaRecommendationPipeline(
        recommender._model, recommender._extractor, recommender.catalogue, device="cpu",
        task="recommendation",
    )  # fmt: skip
    for price, item in ((CHEAP, "i4"), (DEAR, "i7")):
        record = {"history": walk(price)}
        assert recommender.recommend(record=record, k=1)[0].item_key == item
        assert pipe(record, top_k=1)[0]["item_key"] == item
        shares = recommender.explain(record, item)
        assert shares.score == pytest.approx(recommender.score(record, item), abs=1e-4)


def test_a_known_user_is_read_with_the_context_of_what_was_taken(forked, recommender):
    _, tables, split, _ = forked
    users = [tables.user_keys[user] for user in split.test.user_ids]
    lists = recommender.recommend_batch(user_keys=users, k=1, exclude_seen=False)
    items = [tables.item_keys[item] for item in split.test.item_ids]
    assert np.mean([one[0].item_key == item for one, item in zip(lists, items, strict=True)]) > 0.95


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_number_is_one_that_is_not_given(recommender, missing):
    absent = walk(DEAR)
    del absent[-1]["price"]
    expected = recommender.user_embedding({"history": absent})
    found = recommender.user_embedding({"history": walk(missing)})
    np.testing.assert_array_equal(found, expected)
    assert np.abs(recommender.user_embedding({"history": walk(DEAR)}) - expected).max() > 0.01


@pytest.mark.parametrize("value", ["1500 EUR", [3.0], math.inf, 1e31, 10**400])
def test_a_value_that_is_no_number_is_refused(recommender, value):
    with pytest.raises(ValueError, match=r"'history', row 0 .* price must be finite"):
        recommender.recommend(record={"history": walk(value)}, k=1)


def test_an_unknown_name_beside_an_event_is_refused(recommender):
    with pytest.raises(ValueError, match="no 'pirce'; did you mean 'price'"):
        recommender.recommend(record={"history": [{"item": "i1", "pirce": 3.0}]}, k=1)


def test_a_history_names_numbers_that_the_interactions_must_have(tmp_path):
    tables = forked_tables()
    bare = dataclasses.replace(tables.interactions, context={"prize": np.zeros(N_USERS * LENGTH)})
    with pytest.raises(ValueError, match=r"name 'price', of which .* did you mean 'prize'"):
        encode(tables, bare, cache_dir=tmp_path)
