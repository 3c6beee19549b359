"""Time of one recommendation from a raw record, on one core, the model already loaded.

    python benchmarks/recommendation.py runs/quickstart --record '{"age": 31}'

Prints the median and the spread of the calls, and the part that is the model's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from ftmamba import Recommender
from ftmamba.commands.recommend import parse_record


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id")
    parser.add_argument("--record", default="{}", help="raw record, as JSON")
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recommender = Recommender.from_pretrained(arguments.checkpoint)
    record = parse_record(arguments.record)
    figures = {
        "n_items": len(recommender.catalogue),
        "recommend_ms": timed(lambda: recommender.recommend(record=record), arguments.calls),
        "embedding_ms": timed(lambda: recommender.user_embedding(record), arguments.calls),
    }
    print(json.dumps(figures, indent=2))


def timed(call: Callable[[], object], n_calls: int) -> dict[str, float]:
    """Return the median and the 5th and 95th percentiles of a call, in milliseconds."""
    for _ in range(10):
        call()
    times = []
    for _ in range(n_calls):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    percentiles = statistics.quantiles(times, n=20)
    figures = {"median": statistics.median(times), "p5": percentiles[0], "p95": percentiles[-1]}
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
