"""People who walk round a ring of items: what comes next follows from what was last."""

import numpy as np
import pyarrow as pa
import pytest
from accelerate import Accelerator

from ftmamba.checkpoint import save_checkpoint
from ftmamba.comparison import compare, held_out_scorer
from ftmamba.data.tables import load_tables
from ftmamba.evaluation import evaluate
from ftmamba.recipe import recipe_from_dict
from ftmamba.results import make_checkpoint
from ftmamba.training.run import make_protocol, split_tables, train

N_USERS, N_ITEMS, LENGTH = 60, 12, 14
SMALL = {"hidden_size": 16, "projection_size": 16, "intermediate_size": 32, "state_size": 4}
MODEL = {
    "preset": "ft-mamba-history",
    "overrides": {**SMALL, "num_hidden_layers": 1, "token_dropout": 0.0, "residual_dropout": 0.0,
                  "feed_forward_dropout": 0.0},
}  # fmt: skip


def ring_tables(*, with_profile=True, features=()):
    """Return tables of users who step round a ring, each from a place of their own."""
    rng = np.random.default_rng(0)
    starts = rng.integers(N_ITEMS, size=N_USERS)
    pairs = [
        (f"u{user}", f"i{(start + step) % N_ITEMS:02}", 1000 * step + user, 1.0 + step % 5)
        for user, start in enumerate(starts)
        for step in range(LENGTH)
    ]
    users, items, times, weights = (list(column) for column in zip(*pairs, strict=True))
    history = {"kind": "history", "max_length": 10, "event_features": list(features)}
    profile = {"age": "numeric"} if with_profile else {}
    return load_tables(
        pa.table(
            {
                "user_id": [f"u{user}" for user in range(N_USERS)],
                "age": [20.0 + user % 40 for user in range(N_USERS)],
            }
        ),
        pa.table(
            {
                "item_id": [f"i{item:02}" for item in range(N_ITEMS)],
                "size": [float(item) for item in range(N_ITEMS)],
            }
        ),
        pa.table({"user_id": users, "item_id": items, "time": times, "stars": weights}),
        {
            "users": {"key": "user_id", "columns": {**profile, "history": history}},
            "items": {"key": "item_id", "columns": {"item_id": "categorical", "size": "numeric"}},
            "interactions": {
                "user": "user_id", "item": "item_id", "time": "time", "weight": "stars"
            },
        },
    )  # fmt: skip


def ring_recipe(folder, **training):
    return recipe_from_dict(
        {
            "data": {"users": "-", "items": "-", "interactions": "-", "cache_dir": str(folder)},
            "split": "leave-last-out",
            "model": MODEL,
            "training": {
                "sequences": "newest", "loss": "full_softmax", "batch_size": 16, "num_epochs": 25,
                "learning_rate": 0.01, "evaluate_every": 25, **training,
            },
            "evaluation": {"k": [1, 3], "selection_metric": "HR@1", "mask_seen": False,
                           "refit": False},
            "output_dir": str(folder / "run"),
        }
    )  # fmt: skip


def trained_on(recipe, tables):
    """Return the split and the trained model."""
    split = split_tables(tables, recipe)
    return split, train(recipe, tables, split, Accelerator(cpu=True))


def hit_rate(recipe, split, trained):
    scorer = held_out_scorer(trained, split)
    protocol = make_protocol(recipe.evaluation)
    return evaluate(scorer, test=split.test, seen=split.before_test, protocol=protocol).mean("HR@1")


def saved(folder, recipe, tables, split, trained):
    """Save the checkpoint of a run; return its folder."""
    comparison = compare(recipe, tables, split, trained, Accelerator(cpu=True))
    save_checkpoint(folder, make_checkpoint(recipe, tables, split, trained, comparison))
    return folder


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """A model trained on the ring, with what it was trained from."""
    tables = ring_tables(features=("gap", "weight"))
    recipe = ring_recipe(tmp_path_factory.mktemp("ring"))
    return recipe, tables, *trained_on(recipe, tables)
