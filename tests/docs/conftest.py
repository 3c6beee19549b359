"""A folder as a reader of the documents has it: tables, and checkpoints trained on them."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from ftmamba import train
from ftmamba.defaults import propose
from ftmamba.recipe import Recipe, lay_over
from tests.training.conftest import forget_accelerate

N = 60
PROFILE = {"age": "numeric", "gender": "categorical", "occupation": "categorical"}
HISTORY = {"kind": "history", "max_length": 20}
SMALL = {"hidden_size": 16, "projection_size": 16, "intermediate_size": 16}
RUNS = {
    "quickstart": {"split": "random", "training": {"num_epochs": 1, "batch_size": 128}},
    "histories": {
        "split": "leave-last-out",
        "model": {"preset": "ft-mamba-history", "overrides": SMALL},
        "training": {
            "loss": "full_softmax",
            "sequences": "every",
            "num_epochs": 1,
            "batch_size": 32,
        },
    },
}


def movie_like_tables():
    """Return tables with the columns and some of the keys of MovieLens."""
    generator = np.random.default_rng(0)
    keys = [str(key) for key in range(1, N)] + ["181"]
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
    return {"users": users, "items": items, "interactions": interactions}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Tables as CSV, two checkpoints and a few events."""
    folder = tmp_path_factory.mktemp("docs")
    for name, table in movie_like_tables().items():
        pyarrow.csv.write_csv(pa.table(table), folder / f"{name}.csv")
    (folder / "events.jsonl").write_text(
        '{"user_key": "42", "item_key": "50", "time": 893400000, "event_id": "e1"}\n'
    )
    for name, values in RUNS.items():
        make_run(folder, name, values)
    yield folder
    forget_accelerate()


def make_run(folder, name, values):
    """Train and save a checkpoint in `runs`."""
    columns = {**PROFILE, "history": HISTORY} if name == "histories" else PROFILE
    genres = {"kind": "categories", "separator": " "}
    schema = {
        "users": {"key": "user_id", "columns": columns},
        "items": {
            "key": "item_id",
            "title": "title",
            "columns": {"item_id": "categorical", "release_year": "numeric", "genres": genres},
        },
        "interactions": {"user": "user_id", "item": "item_id", "time": "timestamp"},
    }
    paths = {part: str(folder / f"{part}.csv") for part in ("users", "items", "interactions")}
    train(
        {
            "data": {**paths, "cache_dir": str(folder / "cache")},
            "schema": schema,
            "evaluation": {"baselines": ["popularity"], "refit": False},
            "output_dir": str(folder / "runs" / name),
            **values,
        }
    )


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, which is the current one; runs without a recipe are short."""

    def short(tables, given):
        found = propose(tables, given)
        few = {"baselines": ["popularity"], "tune_baselines": False}
        cut = {"training": {"num_epochs": 1}, "evaluation": few, "blend": "none"}
        return replace(found, values=lay_over(Recipe, found.values, cut))

    monkeypatch.setattr("ftmamba.run.propose", short)
    copy = tmp_path / "reader"
    shutil.copytree(prepared, copy)
    monkeypatch.chdir(copy)
    return copy
