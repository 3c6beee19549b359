"""Time the feature extractor: a wide table on one core, and one raw record.

The table has a million rows and 20 columns: 10 texts, 8 numbers, one set, one timestamp. Run

    python benchmarks/processor.py

Time is this process's CPU time, so that a busy machine does not count.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers

from ftmamba.data.fitting import fit_extractor
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

N_TEXT_COLUMNS = 10
N_NUMERIC_COLUMNS = 8
VOCABULARY_SIZES = (2, 7, 21, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
GENRES = ("action", "comedy", "crime", "drama", "fantasy", "horror", "romance", "war")


def wide_table(n_rows: int) -> pa.Table:
    """Return a made-up table, one value in a hundred missing."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for index, size in enumerate(VOCABULARY_SIZES):
        words = np.array([f"value {number} of {size}" for number in range(size)])
        picked = pa.array(words).take(pa.array(rng.integers(0, size, n_rows)))
        columns[f"text_{index}"] = pa.compute.if_else(
            pa.array(rng.random(n_rows) > 0.01), picked, None
        )
    for index in range(N_NUMERIC_COLUMNS):
        columns[f"number_{index}"] = pa.array(
            rng.standard_normal(n_rows), mask=rng.random(n_rows) < 0.01
        )
    lengths = rng.integers(0, 5, n_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    members = pa.array(GENRES).take(pa.array(rng.integers(0, len(GENRES), offsets[-1])))
    columns["genres"] = pa.ListArray.from_arrays(pa.array(offsets), members)
    columns["joined"] = pa.array(rng.integers(0, 1_700_000_000, n_rows))
    return pa.table(columns)


def wide_columns() -> list[dict[str, Any]]:
    """Return the schema of the table."""
    return [
        *({"name": f"text_{index}", "kind": "categorical"} for index in range(N_TEXT_COLUMNS)),
        *({"name": f"number_{index}", "kind": "numeric"} for index in range(N_NUMERIC_COLUMNS)),
        {"name": "genres", "kind": "categories"},
        {"name": "joined", "kind": "timestamp"},
    ]


def cpu_seconds(run: Callable[[], object], n_runs: int) -> dict[str, float]:
    """Return median, least and most CPU seconds of a call."""
    seconds = []
    for _ in range(n_runs):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def commit() -> str:
    """Return the checked-out commit, or "unknown"."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    table = wide_table(options.rows)
    extractor = FTMambaFeatureExtractor(
        user_columns=wide_columns(), item_columns=[{"name": "price", "kind": "numeric"}]
    )
    items = {"price": [1.0, 2.0]}
    fit = cpu_seconds(lambda: fit_extractor(extractor, table, items), 1)["median"]
    extractor = fit_extractor(extractor, table, items)
    encode = cpu_seconds(lambda: extractor(users=table), options.runs)
    record = table.slice(0, 1).to_pylist()
    single = cpu_seconds(lambda: [extractor(users=record) for _ in range(100)], options.runs)
    result = {
        "benchmark": "processor",
        "rows": options.rows,
        "columns": table.num_columns,
        "runs": options.runs,
        "fit_seconds": fit,
        "encode_seconds": encode,
        "rows_per_second": options.rows / encode["median"],
        "one_record_milliseconds": {name: 10 * value for name, value in single.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
