import dataclasses
import math
import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ftmamba.results import Cost
from hub_cards import pin_revision, render_model_card
from hub_cards.facts import Figure, ResultRow
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig

GOLDEN = Path(__file__).parent / "golden_model_card.md"


def test_the_card_is_the_golden_one(facts):
    text = render_model_card(facts)
    if os.environ.get("FTMAMBA_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_reads_metadata_and_results_back_with_every_baseline_beside_the_model(facts):
    data = dataclasses.replace(facts.data, hub_id="somebody/tiny-films")
    card = ModelCard(render_model_card(dataclasses.replace(facts, data=data))).data
    assert (card.license, card.pipeline_tag) == ("apache-2.0", "feature-extraction")
    assert (card.library_name, card.model_name) == ("transformers", facts.name)
    assert {"recommendation", "mamba"} <= set(card.tags)
    assert card.metrics == ["ndcg", "hit_rate"]
    assert card.to_dict()["co2_eq_emissions"]["emissions"] == 0.4
    assert card.datasets == ["somebody/tiny-films"]
    first, second = card.eval_results
    assert (first.metric_name, first.metric_value) == ("NDCG@10", 0.2231)
    assert (second.metric_name, second.metric_value) == ("HR@10", 0.5)
    assert (first.dataset_name, first.dataset_type) == ("Tiny Films", "somebody/tiny-films")
    assert first.metric_args["interval_95"] == [0.2, 0.25]
    assert first.metric_args["baselines"] == {
        "popularity | 14 days": {"value": 0.3902, "interval_95": [0.35, 0.43]},
        "EASE": {"value": 0.22, "interval_95": [0.19, 0.26]},
    }
    assert "interval_95" not in second.metric_args


def test_the_verdict_follows_the_intervals_of_the_differences(facts):
    assert "**above**" not in render_model_card(facts)
    won = dataclasses.replace(facts.results[2], difference=Figure(0.1, 0.05, 0.15))
    text = render_model_card(dataclasses.replace(facts, results=(facts.own, won)))
    assert "is **above** EASE:" in text
    assert "**below**" not in text
    assert "No significant" not in text


def test_a_card_is_pinned_once_its_commit_is_known(facts):
    card = render_model_card(dataclasses.replace(facts, repo="runs/x", revision="main"))
    pinned = pin_revision(card, "somebody/films", "0123abc")
    assert pinned == render_model_card(facts)
    assert pin_revision(pinned, "somebody/films", "0123abc") == pinned


EMPTY_NETWORK = FTMambaConfig(num_hidden_layers=0, pooling="mean")
NOT_MEASURED = {"cost": Cost(61.4, "CPU"), "versions": {}, "curves": "", "groups": (), "parts": {}}


@pytest.mark.parametrize(
    ("changes", "shown", "hidden"),
    [
        ({"code": {"modeling_ftmamba.py": "0" * 64}}, "AutoModel", ["pipeline("]),
        ({"with_catalogue": False}, "network without its items.", ["pipeline(", "handler.py"]),
        (NOT_MEASURED, "61 s", ["codecarbon", "co2_eq", "| memory |", ".png", "by group"]),
        ({"config": EMPTY_NETWORK}, "pool them and return one embedding", ["`mamba` layers each"]),
    ],
)
def test_what_is_absent_or_was_not_measured_is_not_said(facts, changes, shown, hidden):
    plain, card = (render_model_card(dataclasses.replace(facts, **one)) for one in ({}, changes))
    assert shown in card
    for word in hidden:
        assert word in plain
        assert word not in card


def test_the_badly_served_are_those_whose_interval_lies_below_the_average(facts):
    (groups,) = facts.groups
    even = dataclasses.replace(groups, rows=groups.rows[:1])
    text = render_model_card(dataclasses.replace(facts, groups=(even,)))
    assert "no group's interval lies below the average" in text


def test_results_that_are_absent_short_or_not_finite_are_refused(facts):
    short = ResultRow("EASE", {"NDCG@10": Figure(0.2)})
    bad = [ResultRow("EASE", {"NDCG@10": Figure(0.2, 0.1, x)}) for x in (math.nan, math.inf)]
    for changes, message in (
        ({"results": ()}, "results, got none"),
        ({"results": (*facts.results, short)}, "results of 'EASE' lack 'HR@10'"),
        *(({"parts": {"Cold": [one]}}, "NDCG@10 of 'EASE' must be a finite") for one in bad),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(facts, **changes)


def test_an_example_too_long_for_a_card_is_refused(facts):
    with pytest.raises(ValueError, match=r"must be short, got 30\d\d characters"):
        render_model_card(dataclasses.replace(facts, example_record={"text": "x" * 3000}))
