"""The README's code runs: Python blocks and `ftmamba` commands, in order, on a small run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from accelerate import Accelerator

from ftmamba.__main__ import main
from ftmamba.checkpoint import save_checkpoint
from ftmamba.comparison import check_rivals_and_baselines, compare
from ftmamba.data.schema import Schema
from ftmamba.data.tables import load_tables
from ftmamba.evaluation import make_split
from ftmamba.recipe import choose_variant, recipe_from_dict
from ftmamba.results import make_checkpoint
from ftmamba.training.run import train

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
N = 60


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def movie_like_tables():
    """Return tables with the columns and some of the keys of MovieLens."""
    generator = np.random.default_rng(0)
    keys = [str(key) for key in range(1, N + 1)]
    users = {
        "user_id": keys,
        "age": generator.integers(18, 70, N).tolist(),
        "gender": generator.choice(["F", "M"], N).tolist(),
        "occupation": generator.choice(["doctor", "artist"], N).tolist(),
    }
    items = {
        "item_id": keys,
        "title": [f"Film {key}" for key in keys],
        "release_year": generator.integers(1950, 1998, N).tolist(),
        "genres": generator.choice(["Comedy", "Comedy Drama", "War"], N).tolist(),
    }
    pairs = np.unique(generator.integers(0, N, (900, 2)), axis=0)
    interactions = {
        "user_id": [keys[user] for user in pairs[:, 0]],
        "item_id": [keys[item] for item in pairs[:, 1]],
        "timestamp": generator.integers(874_700_000, 893_300_000, len(pairs)).tolist(),
    }
    return [pa.table(table) for table in (users, items, interactions)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    users, items, interactions = movie_like_tables()
    for name, table in (("users", users), ("items", items), ("interactions", interactions)):
        pyarrow.csv.write_csv(table, folder / f"{name}.csv")
    schema = {
        "users": {
            "key": "user_id",
            "columns": {"age": "numeric", "gender": "categorical", "occupation": "categorical"},
        },
        "items": {
            "key": "item_id",
            "title": "title",
            "columns": {
                "release_year": "numeric",
                "genres": {"kind": "categories", "separator": " "},
            },
        },
        "interactions": {"user": "user_id", "item": "item_id", "time": "timestamp"},
    }
    paths = {name: str(folder / f"{name}.csv") for name in ("users", "items", "interactions")}
    recipe = recipe_from_dict(
        {
            "data": {**paths, "cache_dir": str(folder / "cache")},
            "schema": schema,
            "split": "random",
            "training": {"num_epochs": 1, "batch_size": 128},
            "evaluation": {"baselines": ["popularity"]},
            "output_dir": str(folder / "runs" / "quickstart"),
        }
    )
    tables = load_tables(**paths, schema=schema)
    split = make_split("random").split(tables.interactions)
    accelerator = Accelerator(cpu=True)
    trained = train(recipe, tables, split, accelerator)
    comparison = compare(recipe, tables, split, trained, accelerator)
    checkpoint = make_checkpoint(recipe, tables, split, trained, comparison)
    save_checkpoint(recipe.output_dir, checkpoint)
    return folder


def test_python_blocks_run_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = blocks("python")
    assert len(found) >= 2
    names = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert [one.title for one in names["films"]]
    assert names["scores"].shape == (1, 2)


def test_ftmamba_commands_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m ftmamba ")]
    commands = [line for line in commands if " push " not in line]
    assert len(commands) >= 4
    for line in commands:
        assert main(shlex.split(line, comments=True)[3:]) == 0, line
        assert capsys.readouterr().out.strip(), line


def test_recipes_are_valid_with_their_schemas():
    found = blocks("yaml")
    assert found
    for block in found:
        recipe = recipe_from_dict(choose_variant(yaml.safe_load(block), None))
        assert Schema.from_dict(recipe.schema).to_dict()["users"]["key"] == "user_id"
        check_rivals_and_baselines(recipe)


def test_make_targets_and_recipes_that_it_names_exist():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    targets = re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)
    assert len(targets) >= 2
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    paths = [link for link in links if not link.startswith("http")]
    assert len(paths) >= 3
    for path in paths:
        assert (Path(__file__).parents[1] / path).exists(), path
