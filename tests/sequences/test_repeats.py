"""What a user took before has a bias of its own, learned, and every way to a score knows it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint
from ftmamba.commands.evaluate import repeat_evaluation
from ftmamba.comparison import held_out_scorer
from ftmamba.data.interactions import ItemsByUser
from ftmamba.evaluation import EmbeddingScorer, Protocol, evaluate
from ftmamba.recipe import recipe_from_dict
from ftmamba.training.run import read_tables
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from tests.modeling.conftest import COLUMNS, HISTORY, make_batch, make_config, make_events, shake

from .conftest import MODEL, ring_recipe, saved, trained_on

N_USERS, N_ITEMS, LENGTH, LONGEST = 80, 20, 8, 5
SCHEMA = {
    "users": {"key": "user_id", "columns": {"history": {"kind": "history", "max_length": LONGEST}}},
    "items": {"key": "item_id", "columns": {"item_id": "categorical"}},
    "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
}


def recipe_of(folder, *, repeats, **training):
    """Write tables of users who draw their items, each time the same or never twice; a recipe."""
    rng = np.random.default_rng(0)
    drawn = [
        np.tile(rng.integers(N_ITEMS, size=2), LENGTH // 2)
        if repeats
        else rng.permutation(N_ITEMS)[:LENGTH]
        for _ in range(N_USERS)
    ]
    tables = {
        "users": {"user_id": [f"u{user}" for user in range(N_USERS)]},
        "items": {"item_id": [f"i{item:02}" for item in range(N_ITEMS)]},
        "interactions": {
            "user_id": [f"u{user}" for user in range(N_USERS) for _ in range(LENGTH)],
            "item_id": [f"i{item:02}" for items in drawn for item in items],
            "time": [1000 * step for _ in range(N_USERS) for step in range(LENGTH)],
        },
    }
    paths = {}
    for name, columns in tables.items():
        paths[name] = str(folder / f"{name}.parquet")
        pq.write_table(pa.table(columns), paths[name])
    values = ring_recipe(folder, **{"num_epochs": 12, "evaluate_every": 12, **training}).to_dict()
    overrides = {**MODEL["overrides"], "repeat_bias": True, "normalize_embeddings": True}
    values["data"] = {**paths, "cache_dir": str(folder)}
    values["schema"] = SCHEMA
    values["model"] = {**MODEL, "overrides": {**overrides, "temperature": 0.1}}
    return recipe_from_dict(values)


def trained_from_files(recipe):
    tables = read_tables(recipe.data, recipe.schema, Accelerator(cpu=True))
    return recipe, tables, *trained_on(recipe, tables)


@pytest.fixture(scope="module")
def unrepeated(tmp_path_factory):
    """A model of people who never take a thing again, with what it was trained from."""
    folder = tmp_path_factory.mktemp("unrepeated")
    run = trained_from_files(recipe_of(folder, repeats=False))
    return *run[2:], saved(folder / "run", *run)


@pytest.fixture(scope="module")
def recommender(unrepeated):
    return Recommender.from_pretrained(unrepeated[2])


def test_it_is_below_zero_where_nothing_is_taken_again(unrepeated):
    split, trained, _ = unrepeated
    assert trained.model.repeat_bias < -0.1
    scorer = held_out_scorer(trained, split)
    protocol = Protocol(k=(5,), mask_seen=False)
    found = evaluate(scorer, test=split.test, seen=split.before_test, protocol=protocol)
    plain = replace(scorer, seen=None)
    without = evaluate(plain, test=split.test, seen=split.before_test, protocol=protocol)
    assert found.mean("HR@5") > without.mean("HR@5")


def test_it_is_above_zero_where_the_same_is_taken_again_and_again(tmp_path):
    recipe = recipe_of(tmp_path, repeats=True, num_epochs=4, evaluate_every=4)
    *_, trained = trained_from_files(recipe)
    assert trained.model.repeat_bias > 0.02


def test_a_model_scores_seen_items_with_it():
    model = shake(
        FTMambaTwoTowerModel(make_config(user_columns=[*COLUMNS, HISTORY], repeat_bias=True))
    ).eval()
    output = model(**make_batch(), **make_events([3, 0, 2, 4, 4]))
    users, items = torch.tensor([0, 0, 3, 3, 4]), torch.tensor([1, 1, 0, 6, 2])
    bias_UI = torch.zeros_like(output.scores)
    bias_UI[users, items] = model.repeat_bias.item()
    scores = model.scores(output.user_embeds, output.item_embeds, (users, items))
    torch.testing.assert_close(scores, output.scores + bias_UI / model.temperature)
    scores.sum().backward()
    assert model.repeat_bias.grad.item() == pytest.approx(float(4 / model.temperature), rel=1e-4)


def test_a_scorer_adds_it_once_to_each_item_of_the_history():
    users, items = torch.randn(2, 3), torch.randn(4, 3)
    taken = ItemsByUser(np.array([0, 3, 3]), np.array([1, 1, 3]))
    scorer = EmbeddingScorer(users, items, temperature=0.5, seen=taken, repeat_bias=-2.0)
    expected = users @ items.T / 0.5
    expected[0, [1, 3]] -= 4
    torch.testing.assert_close(scorer.scores(np.array([1, 0])), expected[[1, 0]])


def test_the_recommender_ranks_as_the_evaluation_does_with_and_without_a_mask(unrepeated):
    folder = unrepeated[2]
    checkpoint, recommender = load_checkpoint(folder), Recommender.from_pretrained(folder)
    for mask_seen in (False, True):
        recipe = dict(checkpoint.recipe)
        recipe["evaluation"] = {**recipe["evaluation"], "mask_seen": mask_seen}
        _, evaluation = repeat_evaluation(replace(checkpoint, recipe=recipe, results={}))
        keys = [f"u{user}" for user in evaluation.user_ids]
        lists = recommender.recommend_batch(user_keys=keys, k=3, exclude_seen=mask_seen)
        ids = [[recommender.catalogue.row(one.item_key) for one in found] for found in lists]
        assert evaluation.recommended.tolist() == ids


def test_a_model_that_learns_repeats_recommends_seen_items_unless_its_recipe_masks_them(
    unrepeated,
):
    model = {"preset": "ft-mamba-history", "overrides": {"repeat_bias": True}}
    masked = [
        recipe_from_dict({"model": model, "evaluation": evaluation}).evaluation.mask_seen
        for evaluation in ({}, {"mask_seen": True})
    ]
    assert masked == [False, True]
    assert recipe_from_dict({}).evaluation.mask_seen
    assert not load_checkpoint(unrepeated[2]).catalogue.exclude_seen


def test_the_evaluation_is_the_one_of_training(unrepeated):
    split, trained, folder = unrepeated
    scorer = held_out_scorer(trained, split)
    _, again = repeat_evaluation(load_checkpoint(folder))
    expected = evaluate(scorer, test=split.test, seen=split.before_test, protocol=again.protocol)
    np.testing.assert_array_equal(again.recommended, expected.recommended)


def test_raw_records_get_it_for_what_of_the_catalogue_the_model_reads(recommender, unrepeated):
    model = unrepeated[1].model
    history = ["i03", "i04", "no item", {"item": {"item_id": "i05"}}, "i06", "i06", "i07"]
    record = {"history": history}
    listed = recommender.recommend(record=record, k=N_ITEMS, exclude_seen=False)
    found = {one.item_key: one.score for one in listed}
    items_IE = torch.from_numpy(recommender.catalogue.embeddings)
    user_E = torch.from_numpy(recommender.user_embedding(record))
    plain_I = (items_IE @ user_E / model.temperature).tolist()
    bias = (model.repeat_bias / model.temperature).item()
    for row, key in enumerate(recommender.catalogue.keys):
        # i03 and i04 are older than the newest five.
        expected = plain_I[row] + (bias if key in {"i06", "i07"} else 0)
        assert found[key] == pytest.approx(expected, abs=1e-4)
        assert recommender.score(record, key) == pytest.approx(expected, abs=1e-4)


def test_a_pipeline_scores_as_the_recommender_does(recommender, unrepeated):
    checkpoint = load_checkpoint(unrepeated[2])
    pipe = FTMambaRecommendationPipeline(
        checkpoint.model, checkpoint.extractor, checkpoint.catalogue
    )
    records = [{"history": ["i01", "i02"]}, {}, {"history": ["i09"]}]
    wanted = recommender.recommend_batch(records=records, k=N_ITEMS, exclude_seen=False)
    for answer, expected in zip(
        pipe(records, top_k=N_ITEMS, exclude_seen=False), wanted, strict=True
    ):
        assert [one["item_key"] for one in answer] == [one.item_key for one in expected]
        np.testing.assert_allclose(
            [one["score"] for one in answer], [one.score for one in expected], atol=1e-5
        )
    last = pipe(records[0], top_k=N_ITEMS, exclude_seen=False)[-1]
    assert last["item_key"] in {"i01", "i02"}


@pytest.mark.parametrize("key", ["i01", "i08"])
def test_an_explanation_gives_it_to_the_history(recommender, key):
    record = {"history": ["i01", "i02"]}
    found = recommender.explain(record, key)
    assert found.score == pytest.approx(recommender.score(record, key), abs=1e-4)
    shares = sum(found.user.values()) + sum(found.item.values())
    assert found.baseline_score + shares == pytest.approx(found.score, abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"temperature": -1}, "model: temperature must be > 0"),
        ({"repeat_bias": "no"}, "model: .*bool"),
    ],
)
def test_a_recipe_of_a_model_that_cannot_be_is_refused_in_words(tmp_path, overrides, message):
    recipe = recipe_of(tmp_path, repeats=False)
    model = replace(recipe.model, overrides={**recipe.model.overrides, **overrides})
    with pytest.raises(ValueError, match=message):
        trained_from_files(replace(recipe, model=model))


def test_a_model_without_histories_cannot_have_it():
    with pytest.raises(Exception, match=r"(?s)repeat_bias needs a column of kind 'history'"):
        make_config(repeat_bias=True)
