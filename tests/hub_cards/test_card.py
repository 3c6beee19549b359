import ast
import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hub_cards import Figure, ModelCardFacts, ResultRow, render_model_card

GOLDEN = Path(__file__).parent / "golden_model_card.md"


def test_the_card_is_the_golden_one(facts: ModelCardFacts) -> None:
    text = render_model_card(facts)
    if os.environ.get("FTMAMBA_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_reads_the_metadata_back(facts: ModelCardFacts) -> None:
    card = ModelCard(render_model_card(facts))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "feature-extraction"
    assert "recommendation" in data["tags"]
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"NDCG@10": 0.2231, "HR@10": 0.5}
    assert {result.dataset_name for result in card.data.eval_results} == {"Tiny Films"}


def test_the_metadata_is_plain_yaml(facts: ModelCardFacts) -> None:
    """A numpy float would leave a `!!python/object` tag that the Hub refuses."""
    metadata = render_model_card(facts).split("---\n")[1]
    assert yaml.safe_load(metadata)["model-index"][0]["name"] == facts.name


def test_a_data_set_on_the_hub_is_named_in_the_metadata(facts: ModelCardFacts) -> None:
    data = dataclasses.replace(facts.data, hub_id="somebody/tiny-films")
    card = ModelCard(render_model_card(dataclasses.replace(facts, data=data)))
    assert card.data.datasets == ["somebody/tiny-films"]


def test_every_table_row_has_as_many_cells_as_its_head(facts: ModelCardFacts) -> None:
    lines = render_model_card(facts).split("\n")
    rows = [line for line in lines if line.startswith("|")]
    n_cells = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    heads = [place for place, row in enumerate(rows) if re.fullmatch(r"[|-]+", row)]
    assert len(heads) == 5
    for head, following in zip(heads, [*heads[1:], len(rows) + 1], strict=True):
        assert len(set(n_cells[head - 1 : following - 1])) == 1


def test_the_code_in_the_card_is_python_and_pins_the_revision(facts: ModelCardFacts) -> None:
    blocks = re.findall(r"```python\n(.*?)```", render_model_card(facts), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert '{"age": 31, "occupation": "doctor\'s"}' in block
    assert 'from_pretrained("somebody/films", revision="0123abc")' in blocks[0]
    assert 'options = {"revision": "0123abc", "trust_remote_code": True}' in blocks[1]
    assert blocks[1].count("from_pretrained(repo, **options)") == 2


def test_without_a_revision_the_code_pins_none(facts: ModelCardFacts) -> None:
    text = render_model_card(dataclasses.replace(facts, revision=""))
    assert "revision" not in text
    assert 'options = {"trust_remote_code": True}' in text


def test_a_key_that_is_a_column_is_confessed_as_published(facts: ModelCardFacts) -> None:
    assert "lists every `user_id`" in render_model_card(facts)
    assert "lists every `item_id`" not in render_model_card(facts)


def test_a_baseline_without_a_metric_is_refused(facts: ModelCardFacts) -> None:
    short = ResultRow("EASE", {"NDCG@10": Figure(0.2)})
    with pytest.raises(ValueError, match=r"results of 'EASE' lack 'HR@10'; they have: NDCG@10"):
        dataclasses.replace(facts, results=(*facts.results, short))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(facts: ModelCardFacts, value: float) -> None:
    row = ResultRow("EASE", {"NDCG@10": Figure(0.2, 0.1, value), "HR@10": Figure(0.1)})
    with pytest.raises(ValueError, match="NDCG@10 of 'EASE' must be a finite number"):
        dataclasses.replace(facts, groups={"Cold users": (row,)})


def test_a_card_without_results_is_refused(facts: ModelCardFacts) -> None:
    with pytest.raises(ValueError, match="needs the model's results, got none"):
        dataclasses.replace(facts, results=())
