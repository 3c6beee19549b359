"""Quality of the baselines on MovieLens-100K under four protocols.

    python benchmarks/baselines.py                      # options chosen once, as published
    python benchmarks/baselines.py --tune               # options chosen on validation first
    python benchmarks/baselines.py --protocols R --output baselines.json

A: random 75/25 per user, all ratings, seeds 42, 1, 2. B: ratings >= 4, global time cut 90/10.
C: leave-last-out, all ratings. R: ratings >= 4, five rolling cuts, with popularity that fades. The
whole catalogue is ranked, seen items masked, k = 10.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ftmamba.data.interactions import Interactions
from ftmamba.data.named_datasets import movielens_100k
from ftmamba.evaluation import (
    Evaluation,
    Report,
    Split,
    evaluate,
    make_split,
    pool,
    rolling_cuts,
    tune,
)
from ftmamba.evaluation.baselines import (
    BASELINES,
    EASE,
    GRIDS,
    IALS,
    SECONDS_A_DAY,
    Baseline,
    FittedBaseline,
    ItemKNN,
    Markov,
)


@dataclass(frozen=True)
class FadingPopularity:
    """Score of an item: its training interactions, each of which fades by half in so many days."""

    half_life_days: float

    @property
    def name(self) -> str:
        return f"popularity, half-life {self.half_life_days:g}d"

    def fit(self, train: Interactions, *, as_of: int | None = None) -> FittedBaseline:
        assert train.times is not None
        assert as_of is not None
        weights = 0.5 ** ((as_of - train.times) / (self.half_life_days * SECONDS_A_DAY))
        counts = np.bincount(train.item_ids, weights, train.n_items).astype(np.float32)
        nobody = np.zeros(train.n_users, bool)
        return FittedBaseline(
            self.name, lambda users: counts[None].repeat(len(users), 0), nobody, counts
        )


CHOSEN: Mapping[str, Mapping[str, Baseline]] = {
    "A": {"item-knn": ItemKNN(200, 50), "ease": EASE(500), "ials": IALS(32, 30.0, 5.0)},
    "B": {"item-knn": ItemKNN(50, 0), "ease": EASE(1000), "ials": IALS(64, 10.0, 1.0)},
    "C": {"item-knn": ItemKNN(50, 0), "ease": EASE(100), "ials": IALS(128, 10.0, 5.0)},
    "R": {f"fading-{days}d": FadingPopularity(days) for days in (5, 10, 20)},
}


def main() -> None:
    """Print one table a protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of MovieLens-100K; by default the cache")
    parser.add_argument("--protocols", default="ABC", help="letters among A, B, C and R")
    parser.add_argument("--tune", action="store_true", help="choose options on validation")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    interactions = movielens_100k(arguments.folder).interactions
    figures = {}
    for letter in arguments.protocols:
        started = time.perf_counter()
        splits = splits_of(letter, interactions)
        baselines = tuned(splits[0]) if arguments.tune else defaults(letter)
        per_split = [evaluated(split, baselines) for split in splits]
        evaluations = {name: pool([e[name] for e in per_split]) for name in per_split[0]}
        print(f"\n{letter}: {splits[0].description}")
        print(Report.of(evaluations))
        print(f"{time.perf_counter() - started:.1f} s")
        figures[letter] = {name: e.to_dict() for name, e in evaluations.items()}
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def splits_of(letter: str, interactions: Interactions) -> list[Split]:
    """Return the splits whose users are pooled under a protocol."""
    if letter == "A":
        return [make_split("random", {"seed": seed}).split(interactions) for seed in (42, 1, 2)]
    if letter == "C":
        return [make_split("leave-last-out").split(interactions)]
    assert interactions.weights is not None
    liked = interactions.select(interactions.weights >= 4)
    if letter == "R":
        return [cut.split(liked) for cut in rolling_cuts()]
    return [make_split("global-time").split(liked)]


def defaults(letter: str) -> dict[str, Baseline]:
    """Return every baseline, with the options chosen for the protocol."""
    chosen = CHOSEN[letter]
    if letter == "R":
        return {name: BASELINES[name]() for name in BASELINES if "popularity" in name} | chosen
    baselines = {name: chosen.get(name, make()) for name, make in BASELINES.items()}
    return baselines | {"markov-2": Markov((1.0, 0.5))}


def tuned(split: Split) -> dict[str, Baseline]:
    """Return every baseline, with the options that are best on validation."""
    baselines: dict[str, Baseline] = {}
    for name, make in BASELINES.items():
        if name not in GRIDS:
            baselines[name] = make()
            continue
        started = time.perf_counter()
        found = tune(GRIDS[name], split)
        seconds = time.perf_counter() - started
        print(f"{name}: {found.best} {found.score:.4f} on validation, {seconds:.1f} s")
        baselines[name] = found.best
    return baselines


def evaluated(split: Split, baselines: Mapping[str, Baseline]) -> dict[str, Evaluation]:
    """Fit on training and validation, evaluate on test."""
    known = split.before_test
    evaluations = {}
    for baseline in baselines.values():
        fitted: FittedBaseline = baseline.fit(known, as_of=split.test_time)
        evaluations[baseline.name] = evaluate(fitted, test=split.test, seen=known)
    return evaluations


if __name__ == "__main__":
    main()
