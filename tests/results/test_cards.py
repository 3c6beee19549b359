"""A run's card: what it says is what the run did, and its examples run."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from ftmamba.checkpoint import load_checkpoint, save_checkpoint
from ftmamba.commands.hub import rebuild_card, save_card
from ftmamba.results import Cost, make_checkpoint
from hub_cards import with_card
from hub_cards.card import ENDPOINT_ANSWER, ENDPOINT_ERROR
from hub_cards.contents import published_files
from hub_cards.facts import card_facts, code_hashes, typical_record
from hub_cards.handler import EndpointHandler

COST = Cost(12.5, "a slow machine", 2, 10**9, 0.001, 0.5, "FRA")


def with_groups(run, **card):
    evaluation = replace(run.recipe.evaluation, user_groups=("age",))
    card = replace(run.recipe.card, title="Squares", data_licence="Free for all.", **card)
    return replace(run.recipe, evaluation=evaluation, card=card)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """A finished run's checkpoint in its folder, which its card names."""
    folder = tmp_path_factory.mktemp("cards") / "run"
    recipe = replace(with_groups(run), output_dir=str(folder))
    checkpoint = make_checkpoint(
        recipe, run.tables, run.split, run.trained, run.comparison, cost=COST
    )
    save_checkpoint(folder, with_card(checkpoint))
    return folder


def test_every_example_of_the_card_runs(saved, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (saved / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        exec(compile(block, "README.md", "exec"), names)
        if "item" in names:
            assert names["record"] == {"age": 40}
            assert capsys.readouterr().out.count("\n") == 10
    assert names["embedding"].shape == (1, 8)


def test_the_card_says_what_the_run_did(run, saved):
    card = ModelCard.load(saved / "README.md")
    text = card.text
    assert text.lstrip().startswith("# Squares")
    own = run.comparison.evaluations["FT-Mamba"]
    for metric, result in zip(
        ("NDCG@3", "HR@3", "R@3", "MRR@3"), card.data.eval_results, strict=True
    ):
        assert result.metric_name == metric
        assert result.metric_value == pytest.approx(own.mean(metric), abs=1e-4)
        assert set(result.metric_args["baselines"]) == set(run.comparison.evaluations) - {
            "FT-Mamba"
        }
    assert f"{len(run.split.train) + len(run.split.validation)} of these interactions" in text
    for fact in (
        "Free for all.",
        "| time | 12 s |",
        "| hardware | a slow machine, 2 processes |",
        "| energy | 1 Wh, estimated by codecarbon; about 0.5 g CO₂",
        "by `age`",
        "run 42",
    ):
        assert fact.lower() in text.lower(), fact
    assert re.search(r"\| `age` \| numeric \| 14 \| 0.0 % \| 90 % from", text)
    assert (saved / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](learning_curves.png)" in text


def test_the_results_hold_what_the_card_shows(run, saved):
    results = json.loads((saved / "all_results.json").read_text())
    assert results["cost"]["energy"] == 0.001
    assert results["data"]["split"] == {
        "train": len(run.split.train),
        "validation": len(run.split.validation),
        "test": len(run.split.test),
    }
    assert results["n_parameters"] == run.trained.model.num_parameters()
    groups = results["user_groups"]["age"]
    assert sum(group["n_users"] for group in groups) <= 14
    assert set(groups[0]["models"]) == set(run.comparison.evaluations)


def test_the_cards_list_of_code_is_the_code_that_is_published(saved):
    published = {one.name: one for one in published_files(saved) if one.name.endswith(".py")}
    listed = dict(re.findall(r"\| `([\w.]+\.py)` \| `([0-9a-f]{64})` \|",
                             (saved / "README.md").read_text()))  # fmt: skip
    assert set(listed) == set(published)
    for name, one in published.items():
        content = one.content if isinstance(one.content, bytes) else one.content.read_bytes()
        assert hashlib.sha256(content).hexdigest() == listed[name], name
    assert code_hashes(saved) == listed


def test_the_endpoint_answers_as_the_card_says(saved, run):
    blocks = re.findall(r"```json\n(.*?)```", (saved / "README.md").read_text(), re.DOTALL)
    request, answer, error = map(json.loads, blocks[:3])
    assert (answer, error) == (ENDPOINT_ANSWER, ENDPOINT_ERROR)
    assert request["inputs"] == {"age": 40}
    handler = EndpointHandler(str(saved))
    found = handler(request)
    assert len(found) == 10
    assert set(found[0]) == set(answer[0])
    wrong = handler({"inputs": {"age": 40}, "parameters": {"top_k": 0}})
    assert set(wrong["error"]) == set(error["error"])
    assert wrong["error"]["field"] == error["error"]["field"]


def test_a_run_that_keeps_its_items_back_has_a_card_without_them(run):
    recipe = replace(run.recipe, push_to_hub=True, hub_model_id="me/films", hub_catalogue=False)
    checkpoint = make_checkpoint(recipe, run.tables, run.split, run.trained, run.comparison)
    card = with_card(checkpoint).card
    assert "without its items" in card
    assert "handler.py" not in card
    assert 'repo, revision = "me/films", "main"' in card


def test_no_users_record_is_shown_where_the_recipe_has_no_example(run):
    recipe = replace(run.recipe, examples=replace(run.recipe.examples, record={}))
    checkpoint = make_checkpoint(recipe, run.tables, run.split, run.trained, run.comparison)
    (record,) = set(re.findall(r"^record = (.*)$", with_card(checkpoint).card, re.MULTILINE))
    ages = run.tables.users.column("age").to_pylist()
    assert eval(record) == {"age": pytest.approx(sorted(ages)[7], rel=0.2)}
    for row in range(14):
        assert f'"u{row}"' not in record


def test_the_typical_record_is_of_the_most_frequent_values(tiny_checkpoint):
    extractor = tiny_checkpoint.extractor
    facts = {"users": {"columns": {"age": {"quantiles": [20.0, 36.5, 50.0]}}}}
    assert typical_record(extractor, facts) == {
        "age": 36.5, "gender": "F", "occupation": "artist"
    }  # fmt: skip
    assert typical_record(extractor, {}) == {"gender": "F", "occupation": "artist"}


def test_a_card_is_made_anew_from_the_folder_alone_and_keeps_what_a_person_wrote(saved):
    checkpoint = load_checkpoint(saved)
    again = rebuild_card(checkpoint, saved, evaluate=None)
    assert again.card == checkpoint.card
    assert again.pictures.keys() == {"learning_curves.png"}
    edited = checkpoint.card.replace("# Squares", "# My squares\n\nWe like them.")
    edited = edited.replace("license: apache-2.0", "license: mit")
    edited = re.sub(r"\| best epoch \| \d+ \|", "| best epoch | 99 |", edited)
    rebuilt = rebuild_card(replace(checkpoint, card=edited), saved, evaluate=None).card
    assert "# My squares\n\nWe like them.\n" in rebuilt
    assert "license: mit" in rebuilt
    assert "| best epoch | 99 |" not in rebuilt


def test_a_rebuilt_card_can_judge_another_group(run, saved, monkeypatch, tmp_path):
    named = {"checkerboard": lambda *_, **__: run.tables}
    monkeypatch.setattr("ftmamba.training.run.NAMED_DATASETS", named)
    checkpoint = load_checkpoint(saved)
    own = run.comparison.evaluations["FT-Mamba"]
    rebuilt = rebuild_card(checkpoint, saved, user_groups=["user_id"], evaluate=lambda _: own)
    assert "By `user_id`" in rebuilt.card
    assert list(rebuilt.results["user_groups"]) == ["age", "user_id"]
    (group,) = rebuilt.results["user_groups"]["user_id"]
    assert group["models"]["FT-Mamba"]["value"] == pytest.approx(own.mean("NDCG@3"))
    save_card(rebuilt, tmp_path, tmp_path / "README.md")
    written = json.loads((tmp_path / "all_results.json").read_text())
    assert written["user_groups"] == rebuilt.results["user_groups"]
    assert (tmp_path / "README.md").read_text() == rebuilt.card


def test_an_older_run_without_facts_of_its_data_gets_a_card(saved, monkeypatch, caplog):
    checkpoint = load_checkpoint(saved)
    old = {
        name: value
        for name, value in checkpoint.results.items()
        if name not in ("data", "cost", "user_groups", "n_parameters")
    }
    monkeypatch.setattr("ftmamba.training.run.NAMED_DATASETS", {})
    rebuilt = rebuild_card(replace(checkpoint, results=old, card=""), saved, evaluate=None)
    assert "| `age` | numeric | - | - |" in rebuilt.card
    assert "the card has no missing rates: the tables cannot be read" in caplog.text


def test_a_checkpoint_without_recipe_figures_or_a_metric_has_no_card(saved):
    checkpoint = load_checkpoint(saved)
    results = json.loads(json.dumps(checkpoint.results))
    del results["models"]["FT-Transformer"]["metrics"]["MRR@3"]
    for changes, message in (
        ({"recipe": {}}, r"has no recipe\.yaml"),
        ({"results": {"data": {}}}, "no model's figures"),
        ({"results": results}, "results of 'FT-Transformer' lack 'MRR@3'"),
    ):
        with pytest.raises(ValueError, match=message):
            card_facts(replace(checkpoint, **changes))
