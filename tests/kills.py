"""Kill a small training at random moments, resume it, and compare its weights bit by bit.

`python -m tests.kills --count 20` prints what was killed where, and exits with 1 unless every
resumed run ended as the one that nobody killed. A tenth of the runs ends by SIGTERM instead.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
import yaml
from pyarrow import csv, table
from safetensors.torch import load_file

from tests.made_up_tables import clusters
from train_accelerate import main as train

MOST_KILLS_A_RUN = 4
COMPARED = ("model.safetensors", "catalogue.safetensors")


def write_recipe(folder: Path) -> Path:
    """Write tables and a recipe that saves every second step, validates and trains again."""
    tables = clusters(30, 20, n_events=400, popularity_days=(1,))
    events = tables.interactions
    pairs = {
        "user_id": np.array(tables.user_keys)[events.user_ids],
        "item_id": np.array(tables.item_keys)[events.item_ids],
        "time": events.times,
    }
    raw = {"users": tables.users, "items": tables.items, "interactions": table(pairs)}
    for name, one in raw.items():
        csv.write_csv(one, folder / f"{name}.csv")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "projection_size": 16, "token_dropout": 0.2}
    recipe = {
        "data": {
            **{name: str(folder / f"{name}.csv") for name in raw},
            "cache_dir": str(folder / "cache"),
        },
        "schema": tables.schema.to_dict(),
        "model": {"preset": "ft-mamba-small", "overrides": small},
        "training": {"batch_size": 32, "num_epochs": 3, "checkpointing_steps": 2},
        "evaluation": {"k": [5], "selection_metric": "NDCG@5", "refit": True},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def start(recipe: Path, output: Path, *flags: str) -> BaseProcess:
    """Start a training in a process of its own, which need not import anything."""
    argv = ["--config", str(recipe), "--output_dir", str(output), *flags]
    process = get_context("fork").Process(target=run_with_log, args=(train, argv, log_of(output)))
    process.start()
    return process


def run_with_log(command: Callable[[list[str]], int], argv: list[str], log: Path) -> None:
    """Run a command as a process of its own, whose output goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    sys.exit(command(argv))


def log_of(output: Path) -> Path:
    """Return where a run's last words are."""
    return output.with_suffix(".log")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read what a finished run must have in common with the one that nobody killed."""
    return {
        f"{name}/{key}": value
        for name in COMPARED
        for key, value in load_file(folder / name).items()
    }


def place(folder: Path) -> str:
    """Say how far a run was, by what it had left."""
    for name, words in (("model.safetensors", "after saving"), ("refit", "in the refit")):
        if (folder / name).exists():
            return words
    return "in training" if any(folder.glob("checkpoints/step-*")) else "before the first state"


def kill_until_done(
    recipe: Path, output: Path, seconds: float, draw: random.Random
) -> tuple[Counter[str], str]:
    """Kill a run up to a few times, then let it end; return where, and an error."""
    places: Counter[str] = Counter()
    for _ in range(draw.randint(1, MOST_KILLS_A_RUN)):
        run = start(recipe, output, "--resume_from_checkpoint", "latest")
        number = signal.SIGTERM if draw.random() < 0.1 else signal.SIGKILL
        run.join(draw.uniform(0, 0.8 * seconds))
        if run.exitcode is None:
            os.kill(run.pid or 0, number)
            places[place(output)] += 1
        run.join()
        if run.exitcode not in (0, -number, 128 + number):
            return places, f"exit code {run.exitcode}: {log_of(output).read_text()[-500:]}"
        if run.exitcode == 0:
            break
    run = start(recipe, output, "--resume_from_checkpoint", "latest")
    run.join()
    failed = f"resuming failed: {log_of(output).read_text()[-500:]}"
    return places, failed if run.exitcode else ""


def main() -> int:
    """Kill until enough kills are counted; return 1 if any run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, places, n_runs, failures = random.Random(arguments.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="ftmamba-kills-") as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        for warm_up in ("warm-up", "straight"):
            began = time.perf_counter()
            run = start(recipe, folder / warm_up)
            run.join()
            if run.exitcode:
                raise RuntimeError(log_of(folder / warm_up).read_text())
        seconds = time.perf_counter() - began
        expected = weights(folder / "straight")
        while places.total() < arguments.count:
            output = folder / f"run-{n_runs}"
            found, problem = kill_until_done(recipe, output, seconds, draw)
            n_runs, places = n_runs + 1, places + found
            if not problem:
                ended = weights(output)
                if ended.keys() != expected.keys() or not all(
                    torch.equal(ended[key], expected[key]) for key in expected
                ):
                    problem = "the weights differ"
            failures += bool(problem)
            print(f"run {n_runs}: {dict(found)} {problem or 'bit-equal'}", flush=True)
    print(f"{places.total()} kills in {n_runs} runs ({dict(places)}): {failures} runs differ")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
