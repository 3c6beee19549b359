"""Time and memory of the evaluation: MovieLens-100K, and a large catalogue of made-up numbers.

python benchmarks/evaluation.py                     # both
python benchmarks/evaluation.py --test_users 5000   # the large one in a twentieth of the time
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from ftmamba.data.interactions import Interactions
from ftmamba.data.movielens import movielens_100k
from ftmamba.evaluation import EmbeddingScorer, evaluate, make_split

WIDTH = 64


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of MovieLens-100K; by default the cache")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--test_users", type=int, help="evaluate only so many of the users")
    arguments = parser.parse_args()
    movielens(movielens_100k(arguments.folder).interactions)
    large(arguments.users, arguments.items, arguments.test_users or arguments.users)


def movielens(interactions: Interactions) -> None:
    """Time the evaluation of a two-tower model and its intervals, median of 20 runs."""
    split = make_split("random").split(interactions)
    scorer = random_scorer(interactions.n_users, interactions.n_items)
    evaluation = evaluate(scorer, test=split.test, seen=split.before_test)
    timed(
        f"MovieLens-100K, {len(evaluation)} users x {interactions.n_items} items",
        lambda: evaluate(scorer, test=split.test, seen=split.before_test),
    )
    timed("its summary with 10,000 bootstrap resamples", evaluation.to_dict)


def large(n_users: int, n_items: int, n_test_users: int) -> None:
    """Time one evaluation of made-up embeddings; 50 seen items and one test item a user."""
    generator = np.random.default_rng(0)
    seen = Interactions(
        np.repeat(np.arange(n_users), 50),
        generator.integers(n_items, size=n_users * 50),
        None,
        None,
        n_users,
        n_items,
    )
    test = Interactions(
        np.arange(n_test_users),
        generator.integers(n_items, size=n_test_users),
        None,
        None,
        n_users,
        n_items,
    )
    scorer = random_scorer(n_users, n_items)
    started = time.perf_counter()
    evaluation = evaluate(scorer, test=test, seen=seen)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(evaluation)} of {n_users} users x {n_items} items: {seconds:.1f} s, "
        f"{1e3 * seconds / len(evaluation):.2f} ms a user, peak memory {peak:.2f} GiB"
    )


def random_scorer(n_users: int, n_items: int) -> EmbeddingScorer:
    """Return a two-tower model of random embeddings."""
    generator = torch.Generator().manual_seed(0)
    return EmbeddingScorer(
        torch.randn(n_users, WIDTH, generator=generator),
        torch.randn(n_items, WIDTH, generator=generator),
    )


def timed(title: str, run: Callable[[], object], n_runs: int = 20) -> None:
    """Print the median and the spread of `n_runs` runs."""
    seconds = []
    for _ in range(n_runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(
        f"{title}: median {statistics.median(seconds):.3f} s "
        f"({min(seconds):.3f} to {max(seconds):.3f})"
    )


if __name__ == "__main__":
    main()
