"""Rows a second from an encoded Arrow file on disk to shuffled batches of tensors, on one core.

    python benchmarks/data_path.py

The table is as wide as an encoded record of 20 columns: 10 numbers of `numeric` and 10 ids of
`category_ids`, packed in two fixed-size lists, 120 bytes a row.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ftmamba.data.arrow_tensors import write_arrays
from ftmamba.data.batches import TableBatches


def main() -> None:
    """Measure epochs and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        _write(path, arguments.rows)
        rates = _warm_rates(path, arguments.batch_size, arguments.epochs)
        cold = _rows_a_second_uncached(path, arguments.batch_size)
    result = {
        "benchmark": "data_path",
        "rows": arguments.rows,
        "batch_size": arguments.batch_size,
        "epochs": arguments.epochs,
        "million_rows_a_second": _in_millions(statistics.median(rates)),
        "slowest": _in_millions(min(rates)),
        "fastest": _in_millions(max(rates)),
        "first_epoch_after_dropping_the_page_cache": None if cold is None else _in_millions(cold),
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def _write(path: Path, n_rows: int) -> None:
    generator = np.random.default_rng(0)
    numeric = generator.standard_normal((n_rows, 10), dtype=np.float32)
    ids = generator.integers(3, 1000, size=(n_rows, 10))
    write_arrays(path, {"numeric": numeric, "category_ids": ids})


def _warm_rates(path: Path, batch_size: int, n_epochs: int) -> list[float]:
    batches = TableBatches(path, batch_size=batch_size, seed=0)
    return [_rows_a_second(batches, epoch) for epoch in range(n_epochs)]


def _rows_a_second(batches: TableBatches, epoch: int) -> float:
    """Walk through an epoch; every tensor is touched, so that nothing stays unread."""
    begin, n_rows, total = time.perf_counter(), 0, 0.0
    for batch in batches.epoch(epoch):
        n_rows += len(batch["numeric"])
        total += float(batch["numeric"][0, 0]) + int(batch["category_ids"][-1, -1])
    return n_rows / (time.perf_counter() - begin) if np.isfinite(total) else 0.0


def _rows_a_second_uncached(path: Path, batch_size: int) -> float | None:
    """Measure one epoch after asking the system to forget the file, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return None
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _rows_a_second(TableBatches(path, batch_size=batch_size, seed=0), 0)


def _in_millions(rate: float) -> float:
    return round(rate / 1e6, 2)


if __name__ == "__main__":
    main()
