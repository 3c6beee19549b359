"""Training on histories: the seconds of an epoch and the memory it takes, also of very long ones.

    python -m benchmarks.histories                       # as many threads as there are cores
    python -m benchmarks.histories --folder data/ml-1m   # on the real file rather than its like

`epoch` is the second epoch of the recipe ml-1m, on sequences drawn to be as many and as long as
MovieLens-1M's, each case in a process of its own. `long` is a step of training, and an embedding,
of users with 10,000 events.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.speed.results import environment
from benchmarks.streaming import WIDTH
from ftmamba.flags import load_recipe
from ftmamba.recipe import load_preset
from ftmamba.training.fused_cross_entropy import fused_linear_cross_entropy
from ftmamba.training.run import make_accelerator, read_tables, split_tables, train
from modeling_ftmamba import FTMambaConfig, FTMambaTwoTowerModel

N_USERS, N_ITEMS, N_EVENTS = 6040, 3416, 999_611
SHORTEST, LONGEST = 18, 2314
LONG, LONG_BATCH = 10_000, 8
LARGE = ("--batch_size", "64")
"""Batches that take the least time an epoch; the recipe's smaller ones learn more in it."""

TARGETS = {"epoch_seconds": 15, "epoch_gigabytes": 4, "long_gigabytes": 8}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="", help="where ml-1m.txt lies; else one is drawn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or draw_sequences(Path(scratch))
        case = {"folder": folder, "threads": options.threads}
        found = {
            "epoch in bfloat16": in_a_process(epoch, {**case, "options": LARGE}),
            "epoch in float32": in_a_process(
                epoch, {**case, "options": (*LARGE, "--mixed_precision", "no")}
            ),
            "epoch of the recipe": in_a_process(epoch, {**case, "options": ()}),
            "10,000 events": in_a_process(long_histories, {"threads": options.threads}),
        }
    settings = {"threads": options.threads, "data": "ml-1m.txt" if options.folder else "drawn"}
    print(json.dumps({**settings, **found, "targets": TARGETS, "environment": environment()}))


def in_a_process(job: Callable[..., dict[str, float]], case: Mapping[str, Any]) -> dict[str, float]:
    """Run a job in a process of its own, whose peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, kwds=dict(case))


def epoch(folder: str, threads: int, options: Sequence[str]) -> dict[str, float]:
    """Train two epochs of the recipe, some options replaced; return the seconds of the second."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load_recipe(
            ["--config", "ml-1m", "--folder", folder, "--num_epochs", "2", "--evaluate_every", "2",
             *options, "--output_dir", scratch]
        )  # fmt: skip
        # Drawn items have no titles.
        assert recipe.schema is not None
        items = {key: value for key, value in recipe.schema["items"].items() if key != "title"}
        recipe = replace(recipe, schema={**recipe.schema, "items": items})
        accelerator = make_accelerator(recipe)
        tables = read_tables(recipe.data, recipe.schema, accelerator)
        split = split_tables(tables, recipe)
        history = train(recipe, tables, split, accelerator).result.history
    seconds = history[1]["seconds"]
    return {
        "seconds": round(seconds, 1),
        "events_a_second": round(len(split.train) / seconds),
        "peak_gigabytes": peak_gigabytes(),
    }


def long_histories(threads: int) -> dict[str, float]:
    """Train a step on users with many events, then embed them."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = FTMambaConfig.from_columns(
        [{"name": "history", "kind": "history"}],
        [{"name": "item", "kind": "categorical", "vocabulary_size": N_ITEMS}],
        **load_preset("ft-mamba-history"),
    )
    model = FTMambaTwoTowerModel(config)
    item_ids = torch.arange(N_ITEMS)[:, None]
    history_BT = torch.randint(N_ITEMS, (LONG_BATCH, LONG))
    started = time.perf_counter()
    items_ID = model.get_item_embeddings(item_category_ids=item_ids)
    history_BTD = F.embedding(history_BT, items_ID)
    positions_MD = model.get_user_positions(user_history=history_BTD)[:, 1:-1].reshape(-1, WIDTH)
    loss = fused_linear_cross_entropy(positions_MD, history_BT[:, 1:].flatten(), items_ID)
    loss.backward()
    trained = time.perf_counter()
    model.eval()
    with torch.inference_mode():
        items_ID = model.get_item_embeddings(item_category_ids=item_ids)
        model.get_user_embeddings(user_history=items_ID[history_BT])
    return {
        "users": LONG_BATCH,
        "step_seconds": round(trained - started, 2),
        "embedding_seconds": round(time.perf_counter() - trained, 2),
        "peak_gigabytes": peak_gigabytes(),
    }


def draw_sequences(folder: Path) -> str:
    """Write a file of random sequences like MovieLens-1M's, and return its folder."""
    rng = np.random.default_rng(0)
    lengths_U = np.clip(rng.lognormal(4.56, 0.93, N_USERS), SHORTEST, LONGEST)
    lengths_U = (lengths_U * N_EVENTS / lengths_U.sum()).astype(int)
    popularity_I = rng.permutation(1 / np.arange(1, N_ITEMS + 1) ** 0.8)
    with (folder / "ml-1m.txt").open("w", encoding="utf-8") as file:
        for user, length in enumerate(lengths_U, start=1):
            items = rng.choice(N_ITEMS, length, p=popularity_I / popularity_I.sum()) + 1
            file.writelines(f"{user} {item}\n" for item in items)
    return str(folder)


def peak_gigabytes() -> float:
    """Return the most memory that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
