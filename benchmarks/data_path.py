"""Rows a second from Arrow files on disk to batches of tensors, ready for a training step.

    python benchmarks/data_path.py

`table`: a table as wide as an encoded record of 20 columns, 10 numbers of `numeric` and 10 ids of
`category_ids`, packed in two fixed-size lists, 120 bytes a row, read in shuffled batches on one
core. `uncached` is the first epoch after asking the system to drop the file from memory.

`interactions`: user and item ids and times, and to each the rows of a table of users and one of
items, 20 columns each: what a step of training with in-batch negatives needs.
`step` is the same with the time of a step beside it, and how long the step waited for its batch.

Rates are of wall time; `a_cpu_second` is the median by this process's CPU time, which a busy
machine changes less.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ftmamba.data.arrow_files import write_arrays
from ftmamba.data.batches import Share, TableBatches, make_batches
from ftmamba.data.encoded import EncodedData
from ftmamba.data.read_ahead import read_ahead
from ftmamba.recipe import LossRecipe, TrainingRecipe
from ftmamba.training.objective import Objective, Prepared
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

N_NUMERIC = N_CATEGORICAL = 10
VOCABULARY = 1000
N_RECORDS = 100_000


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="training steps timed; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "benchmark": "data_path",
            "rows": options.rows,
            "batch_size": options.batch_size,
            "epochs": options.epochs,
            "million_rows_a_second": {
                **table_rates(Path(folder) / "rows.arrow", options),
                **interaction_rates(Path(folder) / "interactions.arrow", options),
            },
        }
        if options.steps:
            result["step"] = step_times(Path(folder) / "interactions.arrow", options)
    result |= {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def table_rates(path: Path, options: argparse.Namespace) -> dict[str, dict[str, float] | None]:
    """Measure a wide table: in memory, from the disk, and with a thread that reads ahead."""
    generator = np.random.default_rng(0)
    numeric = generator.standard_normal((options.rows, N_NUMERIC), dtype=np.float32)
    ids = generator.integers(3, VOCABULARY, size=(options.rows, N_CATEGORICAL))
    write_arrays(path, {"numeric": numeric, "category_ids": ids})
    del numeric, ids

    def epoch_of(number: int) -> Iterable[dict[str, torch.Tensor]]:
        return TableBatches(path, Share(options.batch_size, seed=0)).epoch(number)

    def epoch_uncached(number: int) -> Iterable[dict[str, torch.Tensor]]:
        drop_from_memory(path)
        return epoch_of(number)

    def epoch_ahead(number: int) -> Iterable[dict[str, torch.Tensor]]:
        with read_ahead(epoch_of(number)) as ahead:
            yield from ahead

    uncached = rates(epoch_uncached, 7) if hasattr(os, "posix_fadvise") else None
    rates(epoch_of, 1)
    return {
        "table": rates(epoch_of, options.epochs),
        "table_uncached": uncached,
        "table_read_ahead": rates(epoch_ahead, options.epochs),
    }


def interaction_rates(path: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure interactions alone, and with the records of both tables gathered to them."""
    generator = np.random.default_rng(0)
    arrays = {
        "user_ids": generator.integers(N_RECORDS, size=options.rows),
        "item_ids": generator.integers(N_RECORDS, size=options.rows),
        "times": np.sort(generator.integers(10**8, size=options.rows)),
    }
    write_arrays(path, arrays)
    objective = make_objective(path, num_hidden_layers=0, pooling="mean")
    batches = make_batches(objective.data, sequences="", batch_size=options.batch_size, seed=0)

    def rows(epoch: int) -> Iterable[dict[str, torch.Tensor]]:
        for batch in batches.epoch(epoch):
            yield {"rows": batch.rows}

    def prepared(epoch: int) -> Iterable[dict[str, torch.Tensor]]:
        for batch in batches.epoch(epoch):
            yield {"rows": batch.rows, **objective.prepare(batch, 0).inputs}

    return {
        "interactions": rates(rows, options.epochs),
        "interactions_with_records": rates(prepared, max(1, options.epochs // 4)),
    }


def step_times(path: Path, options: argparse.Namespace) -> dict[str, object]:
    """Time forward and backward passes fed by the thread, and their waiting for a batch."""
    objective = make_objective(path, num_hidden_layers=4, hidden_size=64)
    batches = make_batches(objective.data, sequences="", batch_size=options.batch_size, seed=0)

    def all_prepared() -> Iterable[Prepared]:
        for batch in batches.epoch(0):
            yield objective.prepare(batch, 0)

    waits, steps = [], []
    with read_ahead(all_prepared()) as ahead:
        for _ in range(options.steps + 1):
            started = time.perf_counter()
            prepared = next(ahead)
            begun = time.perf_counter()
            objective(prepared).backward()
            waits.append(begun - started)
            steps.append(time.perf_counter() - begun)
    unfed = []
    for _, batch in zip(range(options.steps), batches.epoch(0), strict=False):
        started = time.perf_counter()
        objective.prepare(batch, 0)
        unfed.append(time.perf_counter() - started)
    milliseconds = {
        "forward_and_backward": statistics.median(steps[1:]),
        "preparing_the_batch": statistics.median(unfed),
        "waiting_for_it": statistics.median(waits[1:]),
    }
    return {
        "model": "4 layers, hidden_size 64, 20 columns a tower",
        "milliseconds": {name: round(1e3 * value, 3) for name, value in milliseconds.items()},
        "share_spent_waiting": round(sum(waits[1:]) / (sum(waits[1:]) + sum(steps[1:])), 5),
    }


def make_objective(path: Path, **fields: object) -> Objective:
    """Return an objective over made-up tables of users and items."""
    columns = [{"name": f"number_{index}", "kind": "numeric"} for index in range(N_NUMERIC)] + [
        {"name": f"category_{index}", "kind": "categorical", "vocabulary_size": VOCABULARY}
        for index in range(N_CATEGORICAL)
    ]
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(FTMambaConfig.from_columns(columns, columns, **fields))
    data = EncodedData(
        extractor=SimpleNamespace(columns=lambda _: ()),
        users=records(),
        items=records(),
        interactions=path,
        popularity_history=None,
        item_counts=np.ones(N_RECORDS, np.int64),
        as_of=None,
        n_users=N_RECORDS,
    )
    recipe = TrainingRecipe(loss=LossRecipe("in_batch", time_buckets=1))
    return Objective(model, data, recipe, seed=0)


def records() -> dict[str, torch.Tensor]:
    """Return a table of made-up encoded records."""
    return {
        "numeric": torch.randn(N_RECORDS, N_NUMERIC),
        "category_ids": torch.randint(3, VOCABULARY, (N_RECORDS, N_CATEGORICAL)),
    }


def drop_from_memory(path: Path) -> None:
    """Ask the system to forget a file; it cannot while the file is mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rates(
    epoch: Callable[[int], Iterable[dict[str, torch.Tensor]]], n_epochs: int
) -> dict[str, float]:
    """Walk through epochs; return median, least and most of their rates, in million rows."""
    walls, cpus = [], []
    for number in range(n_epochs):
        batches = epoch(number)
        wall, cpu, n_rows, total = time.perf_counter(), time.process_time(), 0, 0.0
        for batch in batches:
            n_rows += len(batch.get("rows", batch.get("item_numeric")))
            # Every tensor is touched, so that none stays unread.
            total += sum(float(tensor.view(-1)[-1]) for tensor in batch.values())
        walls.append(n_rows / (time.perf_counter() - wall) / 1e6)
        cpus.append(n_rows / (time.process_time() - cpu) / 1e6)
        assert np.isfinite(total)
    figures = {
        "median": statistics.median(walls),
        "min": min(walls),
        "max": max(walls),
        "a_cpu_second": statistics.median(cpus),
    }
    return {name: round(value, 2) for name, value in figures.items()}


if __name__ == "__main__":
    main()
