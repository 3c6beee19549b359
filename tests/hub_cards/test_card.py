import ast
import dataclasses
import math
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ftmamba.results import Cost
from hub_cards import pin_revision, render_model_card
from hub_cards.facts import Figure, ResultRow
from hub_cards.merge import parts_of, split_metadata
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig

GOLDEN = Path(__file__).parent / "golden_model_card.md"
PINNED = 'repo, revision = "somebody/films", "0123abc"'


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def tables(card):
    """Return the rows of each table, its head first, its rule left out."""
    found: list[list[str]] = []
    lines = card.split("\n")
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|") and not above.startswith("|"):
            found.append([])
        if line.startswith("|") and not re.fullmatch(r"[|:-]+", line):
            found[-1].append(line)
    return found


def test_the_card_is_the_golden_one(facts):
    text = render_model_card(facts)
    if os.environ.get("FTMAMBA_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_reads_the_metadata_back(facts, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(render_model_card(facts), encoding="utf-8")
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "feature-extraction"
    assert {"recommendation", "mamba"} <= set(data["tags"])
    assert data["metrics"] == ["ndcg", "hit_rate"]
    assert data["co2_eq_emissions"]["emissions"] == 0.4
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"NDCG@10": 0.2231, "HR@10": 0.5}
    assert {result.dataset_name for result in card.data.eval_results} == {"Tiny Films"}
    assert card.data.model_name == facts.name


def test_the_model_index_has_every_baseline_beside_the_model(facts):
    (first, second) = ModelCard(render_model_card(facts)).data.eval_results
    assert first.metric_args["interval_95"] == [0.2, 0.25]
    assert first.metric_args["baselines"] == {
        "popularity | 14 days": {"value": 0.3902, "interval_95": [0.35, 0.43]},
        "EASE": {"value": 0.22, "interval_95": [0.19, 0.26]},
    }
    assert "interval_95" not in second.metric_args


def test_a_data_set_on_the_hub_is_named_in_the_metadata(facts):
    data = dataclasses.replace(facts.data, hub_id="somebody/tiny-films")
    card = ModelCard(render_model_card(dataclasses.replace(facts, data=data)))
    assert card.data.datasets == ["somebody/tiny-films"]
    assert card.data.eval_results[0].dataset_type == "somebody/tiny-films"


def test_every_table_row_has_as_many_cells_as_its_head(facts):
    found = tables(render_model_card(facts))
    assert len(found) == 9
    for rows in found:
        assert len(rows) > 1
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_the_verdict_follows_the_intervals_of_the_differences(facts):
    assert "**above**" not in render_model_card(facts)
    won = dataclasses.replace(facts.results[2], difference=Figure(0.1, 0.05, 0.15))
    text = render_model_card(dataclasses.replace(facts, results=(facts.own, won)))
    assert "is **above** EASE:" in text
    assert "**below**" not in text
    assert "No significant" not in text


def test_the_code_in_the_card_is_python_and_pins_the_revision(facts):
    blocks = code_blocks(render_model_card(facts))
    assert len(blocks) == 3
    for block in blocks:
        ast.parse(block)
        assert '{"age": 31, "occupation": "doctor\'s"}' in block
        assert block.count(PINNED) == 1
        assert block.count("revision=revision") == block.count(
            "from_pretrained(repo"
        ) + block.count("pipeline(")


def test_a_card_is_pinned_once_its_commit_is_known(facts):
    card = render_model_card(dataclasses.replace(facts, repo="runs/x", revision="main"))
    pinned = pin_revision(card, "somebody/films", "0123abc")
    assert pinned == render_model_card(facts)
    assert pin_revision(pinned, "somebody/films", "0123abc") == pinned


def test_without_the_pipelines_code_no_example_of_it_is_shown(facts):
    card = render_model_card(dataclasses.replace(facts, code={"modeling_ftmamba.py": "0" * 64}))
    assert "pipeline(" not in card
    assert len(code_blocks(card)) == 2


def test_a_card_without_a_catalogue_shows_no_example_that_needs_one(facts):
    card = render_model_card(dataclasses.replace(facts, with_catalogue=False))
    (block,) = code_blocks(card)
    assert "AutoModel" in block
    assert "This repository holds the network without its items." in card
    assert "without its items" not in render_model_card(facts)


def test_generated_sections_are_marked_and_the_title_is_a_persons(facts):
    _, body = split_metadata(render_model_card(facts))
    parts = parts_of(body)
    assert [part.name for part in parts if part.name] == [
        "summary", "usage", "results", "data", "training", "limits", "endpoint", "code", "licence"
    ]  # fmt: skip
    outside = "".join(part.text for part in parts if not part.name)
    assert outside.split() == ["#", *facts.name.split()]


def test_the_badly_served_are_those_whose_interval_lies_below_the_average(facts):
    (groups,) = facts.groups
    even = dataclasses.replace(groups, rows=groups.rows[:1])
    text = render_model_card(dataclasses.replace(facts, groups=(even,)))
    assert "no group's interval lies below the average" in text


def test_what_was_not_measured_is_not_said(facts):
    bare = dataclasses.replace(
        facts, cost=Cost(61.4, "CPU"), versions={}, curves="", with_catalogue=False,
        groups=(), parts={},
    )  # fmt: skip
    text = render_model_card(bare)
    for word in ("codecarbon", "co2_eq", "| memory |", ".png", "handler.py", "by group"):
        assert word not in text
    assert "codecarbon" in render_model_card(facts)


def test_a_network_without_layers_is_not_said_to_have_any(facts):
    config = FTMambaConfig(num_hidden_layers=0, pooling="mean")
    text = render_model_card(dataclasses.replace(facts, config=config))
    assert "into tokens, pool them and return one embedding" in text


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
