"""One run of a study, from the recipe to its file in `runs/sequences`.

Shapes: U users of the test.
"""

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.sequences.study import Study
from ftmamba.atomic import whole_file
from ftmamba.comparison import held_out_scorer
from ftmamba.evaluation import Evaluation, Protocol, Split, evaluate, make_baseline, tune
from ftmamba.evaluation.baselines import GRIDS
from ftmamba.evaluation.protocol import Scorer
from ftmamba.identity import identity_of
from ftmamba.recipe import Recipe
from ftmamba.results import hardware
from ftmamba.training import FitResult
from ftmamba.training.run import (
    Trained,
    make_accelerator,
    read_tables,
    refit,
    split_tables,
    train,
)

RUNS = Path("runs/sequences")
TRIED = "tried"
"""Folder of the runs that read no test."""
PROTOCOLS = {"masked": True, "not masked": False}
"""Whether the items of a user's history are left out of the ranking."""


@dataclass(frozen=True)
class Run:
    """What is kept of a run.

    Attributes:
        facts: recipe, training, figures on validation and, unless it was left out, on the test.
        evaluations: of the test, by protocol.
    """

    facts: dict[str, Any]
    evaluations: dict[str, Evaluation]


def run_network(recipe: Recipe, *, with_test: bool) -> Run:
    """Train a recipe's network and, if asked, read the test, once."""
    accelerator = make_accelerator(recipe)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    split = split_tables(tables, recipe)
    trained = train(recipe, tables, split, accelerator)
    facts = {
        "recipe": recipe.to_dict(),
        "n_parameters": trained.model.num_parameters(),
        "best_epoch": trained.result.best_epoch,
        "validation": trained.result.best_score,
        "history": trained.result.history,
        "seconds": trained.seconds,
        **surroundings(),
    }
    if not with_test:
        return Run(facts, {})
    return tested(facts, held_out_scorer(trained, split), split, recipe.evaluation.k)


def run_refit(recipe: Recipe, n_epochs: int) -> Run:
    """Train a recipe's network on training and validation for so many epochs; read the test once.

    It knows as much as a baseline does. The number of epochs was best where validation was not
    trained on.
    """
    accelerator = make_accelerator(recipe)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    split = split_tables(tables, recipe)
    start = time.perf_counter()
    identity = {**identity_of(recipe, tables), "refit": {"n_epochs": n_epochs}}
    model, data = refit(recipe, tables, split, accelerator, identity=identity)
    seconds = round(time.perf_counter() - start, 3)
    facts = {
        "recipe": recipe.to_dict(),
        "n_parameters": model.num_parameters(),
        "best_epoch": n_epochs,
        "seconds": seconds,
        **surroundings(),
    }
    trained = Trained(model, data, FitResult(n_epochs, None, []), seconds)
    return tested(facts, held_out_scorer(trained, split), split, recipe.evaluation.k)


def run_baseline(name: str, recipe: Recipe) -> Run:
    """Tune a baseline on validation, fit it on training and validation, read the test once."""
    accelerator = make_accelerator(recipe)
    split = split_tables(read_tables(recipe.data, recipe.schema, accelerator), recipe)
    baseline, score = make_baseline(name), None
    if name in GRIDS:
        metric = recipe.evaluation.selection_metric
        protocol = Protocol(k=recipe.evaluation.k)
        tuned = tune(GRIDS[name], split, protocol=protocol, metric=metric)
        baseline, score = tuned.best, tuned.score
    fitted = baseline.fit(split.before_test, as_of=split.test_time)
    facts = {"options": str(baseline), "validation": score, **surroundings()}
    return tested(facts, fitted, split, recipe.evaluation.k)


def tested(facts: dict[str, Any], scorer: Scorer, split: Split, k: tuple[int, ...]) -> Run:
    """Read the test under both protocols."""
    evaluations = {
        words: evaluate(
            scorer, test=split.test, seen=split.before_test, protocol=Protocol(k, mask_seen=masked)
        )
        for words, masked in PROTOCOLS.items()
    }
    figures = {
        words: {metric: one.mean(metric) for metric in one.per_user}
        for words, one in evaluations.items()
    }
    return Run({**facts, "test": figures}, evaluations)


def surroundings() -> dict[str, Any]:
    """Return where figures were measured."""
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def place_of(study: Study, name: str, seed: int) -> Path:
    """Return the path of a run's files, less their endings."""
    return RUNS / study.name / name / str(seed)


def is_kept(place: Path) -> bool:
    """Return whether a run is there."""
    return place.with_suffix(".json").is_file()


def best_epoch(study: Study, variant: str) -> int:
    """Return the epoch that was best on validation, the median of a variant's runs.

    Raises:
        ValueError: there are no runs of it.
    """
    files = sorted((RUNS / study.name / variant).glob("*.json"))
    if not files:
        raise ValueError(
            f"no run of variant {variant!r} says how many epochs to train; run it first"
        )
    epochs = [json.loads(path.read_text(encoding="utf-8"))["best_epoch"] for path in files]
    return int(np.median(epochs))


def save(run: Run, place: Path) -> None:
    """Keep a run: each user's values and, when these are there, the figures as JSON."""
    place.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {}
    for words, one in run.evaluations.items():
        arrays[f"{words}/user_ids"] = one.user_ids
        for metric, values_U in one.per_user.items():
            arrays[f"{words}/{metric}"] = values_U.astype(np.float32)
    if arrays:
        with whole_file(place.with_suffix(".npz")) as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    with whole_file(place.with_suffix(".json")) as path:
        path.write_text(json.dumps(run.facts, indent=1) + "\n", encoding="utf-8")
