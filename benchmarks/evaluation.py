"""Time and memory of the evaluation: MovieLens-100K, and a large catalogue of made-up numbers.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --test_users 5000   # the large one in a twentieth of the time

`ratio_to_matmul` is the time of the whole evaluation, masks and metrics included, over that of the
float32 matrix products of the same blocks of users and items alone, their results overwritten. Both
take turns over parts of the users; the ratio is the median of the turns.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from ftmamba.data.interactions import Interactions
from ftmamba.data.named_datasets import movielens_100k
from ftmamba.evaluation import EmbeddingScorer, Protocol, evaluate, make_split
from ftmamba.evaluation.inner_products import USERS_AT_ONCE, tile_size

WIDTH = 64
N_SEEN = 50


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of MovieLens-100K; by default the cache")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--test_users", type=int, help="evaluate only so many of the users")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n_test_users = options.test_users or options.users
    result = {
        "benchmark": "evaluation",
        "threads": options.threads,
        "movielens_100k": movielens(movielens_100k(options.folder).interactions),
        "large": large(options.users, options.items, n_test_users, options.turns),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


def movielens(interactions: Interactions) -> dict[str, object]:
    """Time the evaluation of a two-tower model and its intervals, 20 runs each."""
    split = make_split("random").split(interactions)
    scorer = random_scorer(interactions.n_users, interactions.n_items)
    evaluation = evaluate(scorer, test=split.test, seen=split.before_test)
    return {
        "users": len(evaluation),
        "items": interactions.n_items,
        "seconds": timed(lambda: evaluate(scorer, test=split.test, seen=split.before_test)),
        "seconds_of_summary_with_10000_resamples": timed(evaluation.to_dict),
    }


def large(n_users: int, n_items: int, n_test_users: int, n_turns: int) -> dict[str, object]:
    """Evaluate made-up embeddings, 50 seen items and one test item a user, in turns with `mm`."""
    generator = np.random.default_rng(0)
    scorer = random_scorer(n_users, n_items)
    seen_users = np.repeat(np.arange(n_users), N_SEEN)
    seen_items = generator.integers(n_items, size=len(seen_users))
    seen = Interactions(seen_users, seen_items, None, None, n_users, n_items)
    test_items = generator.integers(n_items, size=n_users)
    bounds = np.linspace(0, n_test_users, n_turns + 1).astype(int)
    seconds, bare = [], []
    for start, stop in pairwise(bounds.tolist()):
        users = np.arange(start, stop)
        test = Interactions(users, test_items[users], None, None, n_users, n_items)
        part = seen.select((seen_users >= start) & (seen_users < stop))
        began = time.perf_counter()
        evaluate(scorer, test=test, seen=part)
        seconds.append(time.perf_counter() - began)
        bare.append(matmul_seconds(scorer, users))
    return {
        "users": n_test_users,
        "items": n_items,
        "width": WIDTH,
        "seconds": round(sum(seconds), 2),
        "milliseconds_a_user": round(1e3 * sum(seconds) / n_test_users, 3),
        "matmul_milliseconds_a_user": round(1e3 * sum(bare) / n_test_users, 3),
        "ratio_to_matmul": spread([a / b for a, b in zip(seconds, bare, strict=True)]),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }


def matmul_seconds(scorer: EmbeddingScorer, user_ids: np.ndarray) -> float:
    """Time the products of blocks of users with tiles of items, each over the last."""
    size = tile_size(Protocol().k[-1])
    scores = torch.empty(USERS_AT_ONCE, size)
    blocks = torch.split(scorer.users[torch.from_numpy(user_ids)], USERS_AT_ONCE)
    tiles = torch.split(scorer.items, size)
    began = time.perf_counter()
    for block in blocks:
        for tile in tiles:
            torch.mm(block, tile.T, out=scores[: len(block), : len(tile)])
    return time.perf_counter() - began


def random_scorer(n_users: int, n_items: int) -> EmbeddingScorer:
    """Return a two-tower model of random embeddings."""
    generator = torch.Generator().manual_seed(0)
    return EmbeddingScorer(
        torch.randn(n_users, WIDTH, generator=generator),
        torch.randn(n_items, WIDTH, generator=generator),
    )


def timed(run: Callable[[], object], n_runs: int = 20) -> dict[str, float]:
    """Return the median and the spread of the seconds of `n_runs` runs."""
    seconds = []
    for _ in range(n_runs):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return spread(seconds)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
