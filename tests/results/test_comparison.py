"""From a trained model to its table, its checkpoint and what it tells."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint, save_checkpoint
from ftmamba.commands.evaluate import repeat_evaluation
from ftmamba.commands.train import show_examples
from ftmamba.comparison import (
    Rival,
    compare,
    concerns,
    distinct_lists,
    held_out_scorer,
    ids_only,
    parse_rivals,
    rival_recipe,
)
from ftmamba.evaluation import Protocol, evaluate
from ftmamba.evaluation.result import Evaluation
from ftmamba.identity import identity_of
from ftmamba.recipe import ExamplesRecipe, recipe_from_dict
from ftmamba.results import make_checkpoint
from ftmamba.run import run_recipe
from tests.kills import write_recipe


@pytest.fixture(scope="module")
def checkpoint(run):
    return make_checkpoint(run.recipe, run.tables, run.split, run.trained, run.comparison)


def test_every_model_of_the_recipe_is_compared_its_own_first(run):
    names = list(run.comparison.evaluations)
    assert names[:3] == ["FT-Mamba", "FT-Transformer", "ID-only MLP"]
    assert len(names) == 5
    users = [one.user_ids.tolist() for one in run.comparison.evaluations.values()]
    assert all(ids == np.unique(run.split.test.user_ids).tolist() for ids in users)
    assert list(run.comparison.options) == [names[4]]


def test_the_own_row_is_the_trained_model_on_the_test_part(run):
    again = evaluate(
        held_out_scorer(run.trained, run.split),
        test=run.split.test,
        seen=run.split.before_test,
        protocol=Protocol(k=(3,)),
    )
    own = run.comparison.evaluations["FT-Mamba"]
    assert again.mean("NDCG@3") == own.mean("NDCG@3")


def test_differences_are_those_of_the_means(run):
    evaluations = run.comparison.evaluations
    for name, difference in run.comparison.paired().items():
        expected = evaluations["FT-Mamba"].mean("NDCG@3") - evaluations[name].mean("NDCG@3")
        assert difference.difference == pytest.approx(expected)
    assert len(run.comparison.paired()) == 4


def test_an_id_only_rival_sees_keys_alone(run):
    schema = ids_only(run.tables.schema)
    assert [column.name for column in schema.users.columns] == [run.tables.schema.users.key]
    assert [column.name for column in schema.items.columns] == [run.tables.schema.items.key]
    assert len(run.tables.schema.users.columns) > 1


def test_an_id_only_rivals_loss_asks_for_no_other_column(run):
    loss = replace(run.recipe.training.loss, time_buckets=1, mask_history=True)
    recipe = replace(run.recipe, training=replace(run.recipe.training, loss=loss))
    rivals = [Rival("X", "mlp-small", {}, {}, columns) for columns in ("all", "ids")]
    found = [rival_recipe(rival, recipe).training.loss for rival in rivals]
    assert found == [loss, replace(loss, time_buckets=None, mask_history=False)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prset": "x"}, "unknown key 'prset'; did you mean 'preset'"),
        ({"columns": "ids"}, "rival 'X' needs a preset"),
        ({"preset": "mlp-small", "columns": "id"}, "columns must be one of all, ids, got 'id'"),
    ],
)
def test_a_wrong_rival_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parse_rivals({"X": options})


def test_a_rivals_options_are_converted_as_the_recipes_own_are(run):
    options = {"preset": "mlp-small", "training": {"learning_rate": "3e-4"}}
    (rival,) = parse_rivals({"X": options})
    training = rival_recipe(rival, run.recipe).training
    assert training.learning_rate == 3e-4
    assert replace(training, learning_rate=run.recipe.training.learning_rate) == run.recipe.training


def test_the_checkpoint_holds_results_card_and_what_users_saw(run, checkpoint, tmp_path):
    save_checkpoint(tmp_path / "run", checkpoint)
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert list(results["models"]) == list(run.comparison.evaluations)
    own = run.comparison.evaluations["FT-Mamba"]
    assert results["models"]["FT-Mamba"]["metrics"]["NDCG@3"] == own.mean("NDCG@3")
    assert results["training"]["best_epoch"] in (1, 2)
    user = int(run.split.test.user_ids[0])
    seen = run.split.before_test
    expected = set(seen.item_ids[seen.user_ids == user].tolist())
    known = load_checkpoint(tmp_path / "run").users.seen
    assert set(known.pairs(np.array([user]))[1].tolist()) == expected


def test_evaluating_the_checkpoint_again_gives_the_same_figures(run, checkpoint, monkeypatch):
    own = run.comparison.evaluations["FT-Mamba"]
    named = {"checkerboard": lambda *_, **__: run.tables}
    monkeypatch.setattr("ftmamba.training.run.NAMED_DATASETS", named)
    recipe = {**checkpoint.recipe, "split": {"kind": "random", "test_fraction": 0.3, "seed": 1}}
    identity = identity_of(recipe_from_dict(recipe), run.tables)
    results = {**checkpoint.results, "identity": identity}
    _, again = repeat_evaluation(replace(checkpoint, recipe=recipe, results=results))
    assert again.mean("NDCG@3") == own.mean("NDCG@3")


def test_examples_show_the_newest_items_and_what_is_recommended(run, checkpoint):
    recommender = Recommender(checkpoint)
    known = run.split.before_test
    text = show_examples(recommender, run.recipe.examples, run.tables, known)
    first, second = text.split("\n\n")
    row = run.tables.user_row("u2")
    newest = known.item_ids[known.user_ids == row]
    for item in newest:
        assert f"  {run.tables.item_titles[item] or run.tables.item_keys[item]} " in first
    for one in recommender.recommend(user_key="u2", k=10):
        assert one.title or one.item_key in first
    assert second.startswith("A user never seen (age 40)")
    assert len(second.splitlines()) == 2 + 10


def test_no_examples_are_shown_where_none_are_asked(run, checkpoint):
    known = run.split.before_test
    assert show_examples(Recommender(checkpoint), ExamplesRecipe(), run.tables, known) == ""


def evaluation_of(mean, lists):
    recommended = np.array(lists)
    n, k = recommended.shape
    per_user = {f"NDCG@{k}": np.full(n, mean)}
    none = np.zeros(n, np.int64)
    return Evaluation(np.arange(n), per_user, recommended, none == 0, none, 9, Protocol(k=(k,)))


SPREAD = torch.eye(9)
PERSONAL, SAME = [[0, 1], [2, 3], [4, 5]], [[0, 1]] * 3
CONCERNS = {
    "nothing": (0.5, PERSONAL, SPREAD, []),
    "below popularity": (0.25, PERSONAL, SPREAD, [r"below popularity \(NDCG@2 0.3000\).*train"]),
    "behind counting": (0.35, PERSONAL, SPREAD, [r"behind the counting model PCTM .*blend: auto"]),
    "one list": (0.5, SAME, SPREAD, ["same list.*add a history"]),
    "collapse": (0.5, PERSONAL, SPREAD + 9, [r"collapsed \(their .* is 0.99.*learning_rate"]),
    "all": (0.1, SAME, torch.ones(9, 2), ["below", "behind", "same list", "cosine is 1.000"]),
}  # fmt: skip


@pytest.mark.parametrize(("mean", "lists", "items", "expected"), CONCERNS.values(), ids=CONCERNS)
def test_what_is_wrong_with_a_model_is_said_with_a_remedy(mean, lists, items, expected):
    evaluations = {"FT-Mamba": evaluation_of(mean, lists), "rival": evaluation_of(0.9, PERSONAL),
                   "popularity": evaluation_of(0.3, SAME)}  # fmt: skip
    evaluations["PCTM"] = evaluation_of(0.2 if mean == 0.25 else 0.4, PERSONAL)
    baselines = ["popularity", "PCTM"]
    found = concerns(evaluations, baselines, items, "NDCG@2")
    assert len(found) == len(expected)
    assert all(re.search(wanted, one) for wanted, one in zip(expected, found, strict=True))


def test_different_lists_and_covered_items_are_counted():
    text = distinct_lists(evaluation_of(0.5, [[0, 1], [0, 1], [1, 0]]))
    assert text == "2 different lists for 3 users, of 2 of the 9 items"


def test_concerns_lists_and_times_are_logged(run, caplog):
    with caplog.at_level("INFO", "ftmamba"):
        recipe = replace(run.recipe, evaluation=replace(run.recipe.evaluation, rivals={}))
        compare(recipe, run.tables, run.split, run.trained, Accelerator(cpu=True))
    texts = [record.getMessage() for record in caplog.records]
    assert any(re.fullmatch(r"baseline: popularity, \d+\.\d s", text) for text in texts)
    assert any(
        re.match(r"recommendations: \d+ different lists for \d+ users", one) for one in texts
    )


@pytest.mark.parametrize("executable", [sys.executable, "/bin/false"])
def test_rivals_trained_beside_the_model_are_those_trained_after_it(
    tmp_path, monkeypatch, caplog, executable
):
    caplog.set_level("INFO")
    values = yaml.safe_load(write_recipe(tmp_path).read_text())
    small = {"hidden_size": 16, "num_hidden_layers": 1}
    rivals = {"Attention": {"preset": "ft-transformer-small", "overrides": small}}
    values["evaluation"] |= {"rivals": rivals, "refit": False}
    values["training"] |= {"num_epochs": 1, "checkpointing_steps": ""}
    figures = []
    for n_threads in (1, 2):
        monkeypatch.setattr("sys.executable", executable)
        monkeypatch.setattr("torch.get_num_threads", lambda n=n_threads: n)
        monkeypatch.setattr("torch.set_num_threads", lambda _: None)
        values["output_dir"] = str(tmp_path / f"run-{n_threads}")
        finished = run_recipe(recipe_from_dict(values))
        figures.append(finished.checkpoint.results["models"]["Attention"])
    assert figures[0] == figures[1]
    resumed = [one for one in caplog.messages if "resumed from" in one and "Attention" in one]
    assert len(resumed) == (executable != "/bin/false")
