"""Commands about runs: cards, tables of runs, a page."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from ftmamba.__main__ import main

SCHEMA = {
    "users": {"key": "user_id", "columns": {"age": "numeric", "gender": "categorical"}},
    "items": {"key": "item_id", "title": "title", "columns": {"year": "numeric"}},
    "interactions": {"user": "user_id", "item": "item_id", "time": "at"},
}
FIGURES = {"NDCG@10": 0.25, "HR@10": 0.5, "R@10": 0.1, "MRR@10": 0.3}


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(0)
    made = {
        "users": {
            "user_id": [f"u{n}" for n in range(12)],
            "age": [None, *range(20, 31)],
            "gender": ["F", "M", None] * 4,
        },
        "items": {
            "item_id": [f"i{n:02}" for n in range(20)],
            "title": [f"Film {n}" for n in range(20)],
            "year": list(range(1980, 2000)),
        },
        "interactions": {
            "user_id": [f"u{n}" for n in rng.integers(12, size=90)],
            "item_id": [f"i{n:02}" for n in rng.integers(20, size=90)],
            "at": list(range(1_700_000_000, 1_700_000_090)),
        },
    }
    for name, table in made.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in made}


@pytest.fixture
def run(checkpoint_folder, tmp_path, tables):
    """A finished run: the tiny checkpoint with figures and a recipe that names real tables."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(checkpoint_folder, folder)
    recipe = {"data": tables, "schema": SCHEMA, "split": "random", "evaluation": {"k": [10]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model = {"metrics": FIGURES, "protocol": "all items", "n_users": 12, "n_items": 20}
    (folder / "all_results.json").write_text(json.dumps({"models": {"FT-Mamba": model}}))
    return folder


def test_card_writes_the_readme_and_a_page_to_look_at(run, tmp_path, capsys):
    page = tmp_path / "card.html"
    assert main(["card", str(run), "--html", str(page)]) == 0
    card = ModelCard.load(run / "README.md")
    assert card.data.eval_results[0].metric_value == 0.25
    assert "| `age` | numeric | 11 | 8.3 % |" in card.text
    assert str(run / "README.md") in capsys.readouterr().out
    assert "<h1>FT-Mamba on own tables</h1>" in page.read_text()


def test_card_judges_groups_of_users_by_evaluating_again(run, tmp_path):
    output = tmp_path / "CARD.md"
    before = (run / "README.md").read_text()
    assert main(["card", str(run), "--user_group", "gender", "--output", str(output)]) == 0
    text = output.read_text()
    assert "Results by group of users" in text
    assert (run / "README.md").read_text() == before
    groups = json.loads((run / "all_results.json").read_text())["user_groups"]["gender"]
    assert sum(group["n_users"] for group in groups) <= 12


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("card RUN --user_group gendre", "no column 'gendre'; did you mean 'gender'"),
        ("card somebody/films", "give the output_dir of a finished run"),
        ("space RUN --space me/demo", "push it first, then give its Hub id"),
    ],
)
def test_wrong_arguments_are_named(run, capsys, command, message):
    assert main(command.replace("RUN", str(run)).split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("of_run", [True, False])
def test_dataset_card_describes_the_tables_of_a_run_or_a_recipe(run, tmp_path, capsys, of_run):
    source = run if of_run else run / "recipe.yaml"
    assert main(["dataset-card", str(source), "--repo", "me/films", "--licence", "cc0-1.0"]) == 0
    text = capsys.readouterr().out
    card = DatasetCard(text)
    assert card.data.license == "cc0-1.0"
    assert 'repo = "me/films"' in text
    assert "12 users, 20 items and 90 interactions from 2023-11-14 to 2023-11-14" in text
    assert "| `gender` | categorical | 2 | 33.3 % |" in text


def test_dataset_card_writes_a_file(run, tmp_path):
    assert main(["dataset-card", str(run), "--output", str(tmp_path / "data.md")]) == 0
    assert (tmp_path / "data.md").read_text().startswith("---\nlicense: other\n")


def test_runs_prints_a_table_and_csv(run, capsys):
    assert main(["runs", str(run.parent)]) == 0
    assert capsys.readouterr().out.startswith("| run  | model    | NDCG@10 [95 %] |")
    assert main(["runs", str(run.parent), "--csv"]) == 0
    assert capsys.readouterr().out.startswith("run,model,NDCG@10 [95 %],")


def test_space_writes_a_page_that_names_the_checkpoint(run, tmp_path, capsys):
    assert main(["space", str(run), "--folder", str(tmp_path / "out")]) == 0
    assert "serve it with python app.py" in capsys.readouterr().out
    launcher = (tmp_path / "out" / "app.py").read_text()
    assert f'"{run}"' in launcher
    assert '"gender": "F"' in launcher
