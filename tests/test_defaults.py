"""The options proposed for tables: rules by their shape, and a reason for each."""

import re

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.tables import load_tables
from ftmamba.defaults import propose
from ftmamba.evaluation import make_split
from ftmamba.recipe import Recipe, lay_over, recipe_from_dict


def tables_of(users, items, **columns):
    """Return the tables made of interactions alone."""
    events = {"user_id": np.asarray(users), "item_id": np.asarray(items), **columns}
    return load_tables(None, None, pa.table(events))


def drawn(n_users=40, n_each=10, n_items=30, **columns):
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(n_users), n_each)
    return tables_of(users, generator.integers(0, n_items, len(users)), **columns)


def shuffled(n):
    return np.random.default_rng(1).permutation(n)


def test_a_proposal_is_a_partial_recipe_over_which_given_options_are_laid():
    tables = drawn(time=shuffled(400) * 3600 + 10**9)
    proposal = propose(tables, {})
    assert recipe_from_dict(proposal.values).split.kind == "global-time"
    given = {"split": "random", "training": {"num_epochs": 3}}
    recipe = recipe_from_dict(lay_over(Recipe, proposal.values, given))
    assert (recipe.split.kind, recipe.training.num_epochs) == ("random", 3)
    assert propose(tables, given).values["training"]["sequences"] == "every"


SITTINGS = np.arange(400) * 3600 + 10**9  # each user's ten in a row, one user after another


@pytest.mark.parametrize(
    ("columns", "n_each", "kind", "reason"),
    [
        ({}, 10, "random", "neither times nor an order"),
        ({"pos": np.arange(400) % 10}, 10, "leave-last-out", "an order and no times"),
        ({"time": shuffled(400) * 3600 + 10**9}, 10, "global-time", "100% of the test users"),
        ({"time": SITTINGS}, 10, "leave-last-out", r"\d+% of the test users .* median user has 10"),
        ({"time": SITTINGS}, 1, "global-time", "0% of the test users have earlier"),
        ({"time": np.arange(400) // 399 + 10**9}, 10, "leave-last-out", "nobody would have"),
        ({"time": np.arange(400) // 399 + 10**9}, 2, "random", "too few interactions"),
        ({"pos": np.arange(400) % 2}, 2, "random", "0 users only have 3"),
    ],
)
def test_the_split_follows_times_order_and_how_many_people_come_back(columns, n_each, kind, reason):
    tables = drawn(400 // n_each, n_each, **columns)
    proposal = propose(tables, {})
    assert proposal.values["split"] == {"kind": kind}
    (found,) = [one for one in proposal.reasons if one.startswith("split: ")]
    assert re.search(reason, found)
    split = make_split(kind).split(tables.interactions)
    assert len(split.train) > 0.8 * len(split.test) > 0
    assert len(split.validation)


def test_each_user_once_and_no_time_is_still_divided_in_three():
    tables = drawn(40, 1)
    split = make_split("random").split(tables.interactions)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [25, 5, 10]
    assert propose(tables, {}).values["split"] == {"kind": "random"}


@pytest.mark.parametrize(
    ("name", "levels", "least"),
    [
        ("Stars", [1, 2, 3, 4, 5], 4), ("food_rating", [0, 1, 2], 2), ("score", range(1, 11), 8),
        ("rating", np.arange(1, 11) / 2, 4), ("rating", np.arange(60), None),
        ("rating", [0, 1], None), ("plays", [1, 2, 3, 4, 5], None),
    ],
)  # fmt: skip
def test_ratings_of_a_few_levels_count_from_seven_tenths_of_their_scale_on(name, levels, least):
    tables = drawn(**{name: np.resize(np.array(levels), 400)})
    proposal = propose(tables, {})
    assert proposal.values.get("data", {}).get("positive_threshold") == least
    if least is not None:
        assert proposal.reasons[0].startswith(f"data.positive_threshold: {least}, for {name!r} is")


def test_rows_that_say_more_than_a_rating_count_whatever_it_is():
    ratings = {"stars": np.arange(400) % 5 + 1, "service_rating": np.arange(400) % 3}
    assert propose(drawn(**ratings), {}).values["data"] == {"positive_threshold": 4}
    proposal = propose(drawn(**ratings, order_no=np.arange(400) + 7), {})
    assert "data" not in {k for k, v in proposal.values.items() if v}
    assert "a row is more than a rating, it has 'order_no'" in proposal.reasons[0]


def test_a_time_of_each_test_of_its_own_leaves_popularity_columns_out_and_a_cut_keeps_them():
    cut = drawn(time=shuffled(400) * 3600 + 10**9)
    assert cut.schema.items.popularity_columns
    assert "schema" not in propose(cut, {}).values
    assert "refit_share" not in propose(cut, {}).values["evaluation"]
    sittings = drawn(time=SITTINGS)
    assert propose(sittings, {}).values["evaluation"]["refit_share"] == 0.2
    without = {"evaluation": {"refit": False}}
    assert not {"refit", "refit_share"} & propose(sittings, without).values["evaluation"].keys()
    proposed = propose(sittings, {}).values["schema"]
    assert proposed == {**sittings.schema.to_dict(), "items": proposed["items"]}
    assert "popularity_days" not in proposed["items"]
    assert "schema" not in propose(sittings, {"schema": sittings.schema.to_dict()}).values
    assert "schema" not in propose(sittings, {"split": "global-time"}).values


def test_training_follows_the_size_and_ends_in_minutes(monkeypatch):
    small = propose(drawn(), {}).values["training"]
    assert (small["sequences"], small["batch_size"], small["num_epochs"]) == ("every", 16, 100)
    assert small["num_epochs"] // small["evaluate_every"] == 20
    once = propose(drawn(40, 1, time=SITTINGS[:40]), {}).values["training"]
    assert (once["sequences"], once["history_dropout"]) == ("", 0.2)
    large = drawn(3000, 20, 4000, time=np.random.default_rng(0).permutation(60_000) * 60 + 10**9)
    training = propose(large, {}).values["training"]
    assert (training["batch_size"], training["num_epochs"]) == (16, 4)
    monkeypatch.setattr("ftmamba.defaults.MOST_STEPS_AN_EPOCH", 50)
    assert propose(large, {}).values["training"]["batch_size"] == 64
    many_items = tables_of(np.repeat(np.arange(20), 3000), np.arange(60_000) % 15_500)
    assert propose(many_items, {}).values["training"]["loss"]["name"] == "sampled_softmax"


def test_baselines_follow_the_data_and_are_tuned_where_they_have_options():
    def evaluation(given, **columns):
        return propose(drawn(**columns), given).values["evaluation"]

    assert not {"markov", "popularity-recent"} & {*evaluation({})["baselines"]}
    assert {"markov", "pctm"} < {*evaluation({}, pos=np.arange(400) % 10)["baselines"]}
    assert "popularity-recent" in evaluation({}, time=SITTINGS)["baselines"]
    assert evaluation({})["tune_baselines"]
    assert not evaluation({"evaluation": {"baselines": ["popularity"]}})["tune_baselines"]


def test_people_without_events_are_read_by_a_column_or_a_start():
    assert propose(drawn(), {}).values["model"]["overrides"]["history_start"]
    users = pa.table({"user_id": np.arange(40), "age": np.arange(40) % 7})
    events = pa.table({"user_id": np.repeat(np.arange(40), 5), "item_id": np.arange(200) % 9})
    overrides = propose(load_tables(users, None, events), {}).values["model"]["overrides"]
    assert not overrides["history_start"]
