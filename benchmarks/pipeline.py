"""What the pipeline adds to the bare model: raw records to answers over encoded tensors to scores.

    python -m benchmarks.pipeline            # 256 records, the small preset, 10,000 items
    python -m benchmarks.pipeline --items 1682 --mixer attention

Shapes: B records, I items, E embedding.

The bare model embeds encoded records and scores them against the catalogue, as whoever used it
without the pipeline would have to; `tower` is its user tower alone. Rounds take turns, so that what
disturbs one disturbs all; the overhead is the median of the rounds' ratios. Time is CPU time. An
explanation of one score, of eight user and eight item columns, is timed beside.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.speed.results import environment
from ftmamba.data.fitting import fit_extractor
from ftmamba.explanations import explain
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel
from modeling_ftmamba.catalogue import top_k
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline

TARGET = 0.20
USER_COLUMNS = [
    {"name": "age", "kind": "numeric"},
    {"name": "income", "kind": "numeric"},
    {"name": "gender", "kind": "categorical"},
    {"name": "occupation", "kind": "categorical"},
    {"name": "city", "kind": "categorical"},
    {"name": "device", "kind": "categorical"},
    {"name": "interests", "kind": "categories"},
    {"name": "joined", "kind": "timestamp"},
]
ITEM_COLUMNS = [
    {"name": "item_id", "kind": "categorical"},
    *({"name": f"number_{index}", "kind": "numeric"} for index in range(7)),
]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--mixer", default="mamba")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--scan", default="sequential", help="sequential is what travels")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    recommend = make_pipeline(options)
    figures = compare(recommend, make_users(options.records), options.rounds)
    settings = {name: getattr(options, name) for name in ("records", "items", "mixer", "scan")}
    print(json.dumps({**settings, **figures, "environment": environment()}, indent=2))


def make_users(n_users: int) -> list[dict[str, Any]]:
    """Return made-up raw records."""
    rng = np.random.default_rng(0)
    return [
        {
            "age": int(rng.integers(10, 90)),
            "income": float(rng.normal(3e4, 1e4)),
            "gender": "FM"[row % 2],
            "occupation": f"occupation {rng.integers(20)}",
            "city": f"city {rng.integers(500)}",
            "device": f"device {rng.integers(10)}",
            "interests": [f"interest {tag}" for tag in rng.integers(30, size=row % 5)],
            "joined": int(rng.integers(10**9, 2 * 10**9)),
        }
        for row in range(n_users)
    ]


def make_pipeline(options: argparse.Namespace) -> FTMambaRecommendationPipeline:
    """Return the pipeline of an untrained model and its catalogue."""
    rng = np.random.default_rng(1)
    items: dict[str, Any] = {"item_id": [f"item {row}" for row in range(options.items)]}
    items |= {f"number_{index}": rng.standard_normal(options.items) for index in range(7)}
    extractor = FTMambaFeatureExtractor(USER_COLUMNS, ITEM_COLUMNS)
    extractor = fit_extractor(extractor, make_users(2000), items)
    config = FTMambaConfig.from_columns(
        extractor.user_columns,
        extractor.item_columns,
        hidden_size=options.hidden_size,
        mixer=options.mixer,
    )
    model = FTMambaTwoTowerModel(config).eval()
    model.set_scan(options.scan)
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=())
    return FTMambaRecommendationPipeline(
        model, extractor, catalogue, device="cpu", task="recommendation"
    )


def compare(
    recommend: FTMambaRecommendationPipeline, records: list[dict[str, Any]], n_rounds: int
) -> dict[str, Any]:
    """Return milliseconds of each, and the pipeline's overhead over both others."""
    model, inputs = recommend.model, recommend.preprocess(records)
    items_IE = torch.from_numpy(recommend.catalogue.embeddings)
    temperature = float(model.temperature.detach())

    @torch.inference_mode()
    def tower() -> object:
        return model.get_user_embeddings(**inputs)

    @torch.inference_mode()
    def bare() -> object:
        scores_BI = (model.get_user_embeddings(**inputs) @ items_IE.T).div_(temperature)
        return top_k(scores_BI, 10)

    calls = {
        "pipeline": lambda: recommend(records, batch_size=len(records)),
        "bare_model": bare,
        "tower": tower,
        "encoding": lambda: recommend.preprocess(records),
        "explanation": lambda: explain(
            model, recommend.feature_extractor, recommend.catalogue, records[0], "item 3"
        ),
    }
    times = interleaved(calls, n_rounds)
    ratios = {
        name: [
            ours / theirs - 1 for ours, theirs in zip(times["pipeline"], times[name], strict=True)
        ]
        for name in ("bare_model", "tower")
    }
    return {
        "milliseconds": {name: spread(seconds, 1e3) for name, seconds in times.items()},
        "overhead": {name: spread(values, 1.0) for name, values in ratios.items()},
        "target": TARGET,
        "reached": statistics.median(ratios["bare_model"]) < TARGET,
    }


def interleaved(calls: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every call, one entry a round, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(n_rounds + 2):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if round_number >= 2:
                times[name].append(time.process_time() - started)
    return times


def spread(values: list[float], scale: float) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {
        name: round(scale * value, 4)
        for name, value in (("median", middle), ("p25", low), ("p75", high))
    }


if __name__ == "__main__":
    main()
