import dataclasses
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from hub_cards import ColumnFacts
from hub_cards.dataset_card import (
    DatasetCardFacts,
    InteractionFacts,
    TableFacts,
    render_dataset_card,
    size_category,
)
from hub_cards.merge import parts_of, split_metadata

GOLDEN = Path(__file__).parent / "golden_dataset_card.md"


@pytest.fixture
def facts() -> DatasetCardFacts:
    age = ColumnFacts({"name": "age", "kind": "numeric"}, 0.125, 61, (19.0, 55.0))
    genres = ColumnFacts({"name": "genres|tags", "kind": "categories"}, 0.0, 6)
    return DatasetCardFacts(
        name="Tiny films",
        repo="somebody/tiny-films",
        users=TableFacts("users", "users.parquet", 943, "user_id", "", [age]),
        items=TableFacts("items", "films.csv", 1682, "item_id", "title", [genres]),
        interactions=InteractionFacts(
            "clicks.parquet",
            100_000,
            {"user": "user_id", "item": "item_id", "time": "at"},
            (20.0, 65.0, 310.0),
            (1.0, 27.0, 233.0),
            0.43,
            ("1997-09-20", "1998-04-22"),
        ),
        schema="schema:\n  users:\n    key: user_id\n",
        licence="cc-by-4.0",
        terms="Made up; do as you like",
    )


def test_the_card_is_the_golden_one(facts):
    text = render_dataset_card(facts)
    if os.environ.get("FTMAMBA_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_reads_the_metadata_back_and_finds_each_table(facts, tmp_path):
    (tmp_path / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")
    data = DatasetCard.load(tmp_path / "README.md").data.to_dict()
    assert data["pretty_name"] == "Tiny films"
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["100K<n<1M"]
    files = {one["config_name"]: one["data_files"] for one in data["configs"]}
    assert files == {
        "users": "users.parquet", "items": "films.csv", "interactions": "clicks.parquet"
    }  # fmt: skip


def test_the_recipe_that_it_shows_names_the_tables_as_the_loader_takes_them(facts):
    block = render_dataset_card(facts).split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block)["data"] == {
        "users": "somebody/tiny-films:users",
        "items": "somebody/tiny-films:items",
        "interactions": "somebody/tiny-films:interactions",
    }


@pytest.mark.parametrize("bad", ["<script>x</script>", "a\n---\nb: [", "```\nx", "| a |\n|---|"])
def test_foreign_text_leaves_the_card_whole(facts, bad):
    column = ColumnFacts({"name": bad, "kind": "categorical"}, 0.0, 1)
    users = dataclasses.replace(facts.users, key=bad, file=bad, columns=[column])
    hostile = dataclasses.replace(
        facts, name=bad, users=users, schema=bad, terms=bad, citation=bad, licence=bad
    )
    head, body = split_metadata(render_dataset_card(hostile))
    assert yaml.safe_load(head)["task_categories"] == ["other"]
    names = [part.name for part in parts_of(body) if part.name]
    assert names == ["summary", "usage", "tables", "limits", "licence"]
    assert "<script" not in body.replace("`<script>x</script>`", "").replace(
        "```yaml\n<script>x</script>\n```", ""
    ).replace("```bibtex\n<script>x</script>\n```", "")


@pytest.mark.parametrize(
    ("n_rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**9, "n>1B")],
)
def test_sizes_are_named_as_the_hub_names_them(n_rows, category):
    assert size_category(n_rows) == category
