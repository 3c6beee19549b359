"""Embedding a table of a million items: items a second, and what it costs beside the model.

    python benchmarks/embedding.py
    python benchmarks/embedding.py --items 100000 --items_layered 20000   # a tenth of the time

An item has 20 columns, 10 numbers and 10 categories. `ratio_to_bare_forward` is the time of
embedding the table over that of the model alone on the same blocks, ready as tensors, their
results thrown away; both take turns, and the ratio is the median of the turns. The model without
layers costs so little that everything else shows.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Mapping

import torch

from ftmamba.table_embedding import block_size, embed_table, rows_of
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

N_NUMERIC = N_CATEGORICAL = 10
VOCABULARY = 1000
MODELS = {
    "no layers, mean": {"num_hidden_layers": 0, "pooling": "mean"},
    "4 layers": {"num_hidden_layers": 4, "hidden_size": 64},
}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--items_layered", type=int, default=100_000, help="for the 4 layers")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    items = made_up(options.items)
    sizes = dict(zip(MODELS, (options.items, options.items_layered), strict=True))
    result = {
        "benchmark": "embedding",
        "columns": N_NUMERIC + N_CATEGORICAL,
        "turns": options.turns,
        "threads": options.threads,
        "models": {
            name: measured(
                FTMambaTwoTowerModel(model_config(fields)).eval(),
                {key: tensor[: sizes[name]] for key, tensor in items.items()},
                options.turns,
            )
            for name, fields in MODELS.items()
        },
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def measured(
    model: FTMambaTwoTowerModel, items: Mapping[str, torch.Tensor], n_turns: int
) -> dict[str, object]:
    """Embed all items once for the memory, then in turns with the bare model for the speed."""
    n_items = len(items["item_numeric"])
    before = peak_memory()
    embed_table(model, "item", n_items, rows_of(items))
    memory = peak_memory() - before
    size, stretch = block_size(model, "item"), n_items // n_turns
    seconds, bare = [], []
    for turn in range(n_turns):
        part = rows_of(items)(turn * stretch, (turn + 1) * stretch)
        started = time.perf_counter()
        embed_table(model, "item", stretch, rows_of(part))
        seconds.append(time.perf_counter() - started)
        bare.append(bare_seconds(model, part, size))
    rates = [stretch / each for each in seconds]
    return {
        "items": n_items,
        "items_at_once": size,
        "items_a_second": {
            "median": round(statistics.median(rates)),
            "min": round(min(rates)),
            "max": round(max(rates)),
        },
        "ratio_to_bare_forward": round(
            statistics.median(all_ / model for all_, model in zip(seconds, bare, strict=True)), 3
        ),
        "peak_memory_mib": {
            "beyond_the_table": round(memory),
            "of_it_the_embeddings": round(n_items * model.config.projection_size * 4 / 2**20),
        },
    }


@torch.inference_mode()
def bare_seconds(
    model: FTMambaTwoTowerModel, items: Mapping[str, torch.Tensor], size: int
) -> float:
    """Time the forward passes alone, on blocks that are ready."""
    rows, n_items = rows_of(items), len(items["item_numeric"])
    blocks = [rows(start, start + size) for start in range(0, n_items, size)]
    started = time.perf_counter()
    for block in blocks:
        model.get_item_embeddings(**block)
    return time.perf_counter() - started


def model_config(fields: Mapping[str, object]) -> FTMambaConfig:
    """Return the configuration of a model for the made-up items."""
    columns = [{"name": f"number_{index}", "kind": "numeric"} for index in range(N_NUMERIC)] + [
        {"name": f"category_{index}", "kind": "categorical", "vocabulary_size": VOCABULARY}
        for index in range(N_CATEGORICAL)
    ]
    return FTMambaConfig.from_columns(columns, columns, **fields)


def made_up(n_items: int) -> dict[str, torch.Tensor]:
    """Return encoded items."""
    return {
        "item_numeric": torch.randn(n_items, N_NUMERIC),
        "item_category_ids": torch.randint(3, VOCABULARY, (n_items, N_CATEGORICAL)),
    }


def peak_memory() -> float:
    """Return the most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
