import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from ftmamba.data.tables import load_tables
from ftmamba.recipe import recipe_from_dict
from ftmamba.results import describe_tables
from hub_cards.card import dataset_card
from hub_cards.merge import parts_of, split_metadata

GOLDEN = Path(__file__).parent / "golden_dataset_card.md"


def tables(user_column="age", kind="numeric", titles=("Up", "Heat")):
    return load_tables(
        {"user_id": ["a", "b", "c"], user_column: ["31", "", "40"]},
        {"item_id": ["x", "y"], "title": list(titles), "genres|tags": ["war;tea", "war"]},
        {"user_id": ["a", "a", "b", "c"], "item_id": ["x", "y", "x", "x"],
         "at": [874_000_000, 893_000_000, 880_000_000, 880_000_001]},
        {
            "users": {"key": "user_id", "columns": {user_column: kind}},
            "items": {
                "key": "item_id", "title": "title",
                "columns": {"genres|tags": {"kind": "categories", "separator": ";"}},
            },
            "interactions": {"user": "user_id", "item": "item_id", "time": "at"},
        },
    )  # fmt: skip


def recipe(title="Tiny films", terms="Made up; do as you like", **data):
    card = {"title": title, "data_hub_id": "somebody/tiny-films", "data_licence": terms}
    return recipe_from_dict({"card": card, "data": {"items": "data/films.csv", **data}})


def test_the_card_is_the_golden_one():
    text = dataset_card(recipe(), tables(), licence="cc-by-4.0")
    if os.environ.get("FTMAMBA_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_hub_and_the_loader_read_it_back_and_find_each_table():
    card = dataset_card(recipe(), tables(), licence="cc-by-4.0")
    data = DatasetCard(card).data.to_dict()
    assert data["pretty_name"] == "Tiny films"
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    files = {one["config_name"]: one["data_files"] for one in data["configs"]}
    assert files == {
        "users": "users.parquet", "items": "films.csv", "interactions": "interactions.parquet"
    }  # fmt: skip
    block = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block)["data"] == {
        "users": "somebody/tiny-films:users",
        "items": "somebody/tiny-films:items",
        "interactions": "somebody/tiny-films:interactions",
    }


@pytest.mark.parametrize("bad", ["<script>x</script>", "a\n---\nb: [", "```\nx", "| a |\n|---|"])
def test_foreign_text_leaves_the_card_whole(bad):
    hostile = dataset_card(recipe(bad, bad), tables(bad, "categorical"), licence=bad)
    head, body = split_metadata(hostile)
    assert yaml.safe_load(head)["task_categories"] == ["other"]
    names = [part.name for part in parts_of(body) if part.name]
    assert names == ["summary", "usage", "tables", "limits", "licence"]
    schema = body[body.index("```yaml\nschema:") :].split("```")[1]
    assert "<script" not in body.replace("`<script>x</script>`", "").replace(schema, "")


@pytest.mark.parametrize(
    ("n_rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**9, "n>1B")],
)
def test_sizes_are_named_as_the_hub_names_them(n_rows, category, monkeypatch):
    facts = describe_tables(tables())
    facts["interactions"]["rows"] = n_rows
    monkeypatch.setattr("hub_cards.card.describe_tables", lambda _: facts)
    data = DatasetCard(dataset_card(recipe(), tables())).data
    assert data.to_dict()["size_categories"] == [category]
