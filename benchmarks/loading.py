"""How long a checkpoint takes to be ready: from the disk, in fresh processes, imports and all.

    python -m benchmarks.loading             # 100,000 items; and a catalogue of a million
    python -m benchmarks.loading --rounds 3

The checkpoint is written first, so that its files are in the page cache. `ready` is from the start
of a process to its first answer to come: imports and `Recommender.from_pretrained`; `after imports`
is the latter alone, in that process. The catalogue's time is that of reading its file and looking
at one embedding and one key.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers.utils import logging

from benchmarks.speed.results import environment
from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel
from modeling_ftmamba.catalogue import Catalogue

TARGETS = {"ready": 3.0, "after imports": 0.5, "catalogue": 2.0}
"""Seconds."""
WIDTH = 64

LOAD = """
import json, sys, time
from ftmamba import Recommender
started = time.perf_counter()
recommender = Recommender.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "n_items": len(recommender.catalogue)}))
"""
READ = """
import json, sys, time
from pathlib import Path
from modeling_ftmamba.catalogue import load_catalogue
started = time.perf_counter()
catalogue = load_catalogue(Path(sys.argv[1]))
catalogue.embeddings[len(catalogue) // 2].sum(), catalogue.keys[len(catalogue) // 2]
print(json.dumps({"seconds": time.perf_counter() - started, "n_items": len(catalogue)}))
"""


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--catalogue", type=int, default=1_000_000, help="items of the catalogue")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logging.disable_progress_bar()
    with TemporaryDirectory() as parent:
        folder, file = Path(parent, "checkpoint"), Path(parent, "catalogue.safetensors")
        write_checkpoint(folder, options.items)
        write_catalogue(file, options.catalogue)
        # In turns, so that what disturbs one disturbs the other.
        runs = [(run(LOAD, folder), run(READ, file)) for _ in range(options.rounds)]
    figures = {
        "ready": [load["process"] for load, _ in runs],
        "after imports": [load["seconds"] for load, _ in runs],
        "catalogue": [read["seconds"] for _, read in runs],
    }
    found = {name: summary(name, seconds) for name, seconds in figures.items()}
    sizes = {"items": options.items, "items of the catalogue alone": options.catalogue}
    print(json.dumps({**sizes, "seconds": found, "environment": environment()}, indent=2))


def write_checkpoint(folder: Path, n_items: int) -> None:
    """Write an untrained checkpoint whose item tower has a table of so many ids."""
    items: dict[str, Any] = {
        "item_id": [f"item {row}" for row in range(n_items)],
        "year": np.random.default_rng(0).integers(1950, 2025, n_items).astype(float),
    }
    users = {"age": [20.0, 30.0, 40.0], "occupation": ["artist", "doctor", "nurse"]}
    extractor = FTMambaFeatureExtractor(
        [{"name": "age", "kind": "numeric"}, {"name": "occupation", "kind": "categorical"}],
        [{"name": "item_id", "kind": "categorical"}, {"name": "year", "kind": "numeric"}],
        item_key="item_id",
    )
    extractor = fit_extractor(extractor, users, items)
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, hidden_size=WIDTH, projection_size=WIDTH
    )
    model = FTMambaTwoTowerModel(config).eval()
    catalogue = embed_catalogue(
        model, extractor(items=items), keys=items["item_id"], titles=items["item_id"]
    )
    save_checkpoint(folder, Checkpoint(model, extractor, catalogue, card="# Items\n"))


def write_catalogue(file: Path, n_items: int) -> None:
    """Write a catalogue of random embeddings."""
    embeddings = np.random.default_rng(1).standard_normal((n_items, WIDTH), dtype=np.float32)
    keys = tuple(f"item {row}" for row in range(n_items))
    Catalogue(keys=keys, titles=keys, embeddings=embeddings).save(file)


def run(program: str, path: Path) -> dict[str, float]:
    """Run a program in a process of its own; return what it reports, and its whole seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    return {**json.loads(done.stdout.splitlines()[-1]), "process": seconds}


def summary(name: str, seconds: list[float]) -> dict[str, float | bool]:
    """Return the median and the extremes, beside the target."""
    found = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    rounded = {key: round(value, 3) for key, value in found.items()}
    return {**rounded, "target": TARGETS[name], "reached": found["median"] < TARGETS[name]}


if __name__ == "__main__":
    main()
