"""From the files of runs to the figures of a study.

Shapes: S seeds, U users of the test.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sequences.runs import PROTOCOLS, TRIED
from benchmarks.sequences.study import Study
from ftmamba.evaluation.result import bootstrap_means, percentiles

METRICS = ("NDCG@10", "HR@10")
LEVEL = 0.95


@dataclass(frozen=True)
class Seeds:
    """The runs of one variant, a seed each.

    Attributes:
        facts: of each run, in the order of their seeds.
        values: protocol and metric -> the mean over seeds of each user's value (U,).
        user_ids: int64 (U,); none where the test was not read.
    """

    facts: Sequence[Mapping[str, Any]]
    values: Mapping[str, NDArray[np.float64]]
    user_ids: NDArray[np.int64]


def read_runs(folder: Path) -> Seeds | None:
    """Read the runs of a variant; None if there are none."""
    files = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
    if not files:
        return None
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    tested = [path.with_suffix(".npz") for path in files if path.with_suffix(".npz").is_file()]
    arrays = [dict(np.load(path)) for path in tested]
    if not arrays:
        return Seeds(facts, {}, np.empty(0, np.int64))
    names = [f"{protocol}/{metric}" for protocol in PROTOCOLS for metric in METRICS]
    values_U = {name: np.mean([one[name] for one in arrays], 0, np.float64) for name in names}
    return Seeds(facts, values_U, arrays[0][f"{next(iter(PROTOCOLS))}/user_ids"])


def summary_of(study: Study, runs: Path) -> dict[str, Any]:
    """Return the figures of what was tested and of what was tried, of all runs that are there."""
    folder, own = runs / study.name, study.compared
    others = (name for name in (*study.variants, *study.refits, *study.baselines) if name != own)
    tested = _read_all(folder, (own, *others) if own else ())
    summary = {name: _figures(seeds) for name, seeds in tested.items()}
    for name, seeds in tested.items():
        if name != own and own in tested:
            summary[name]["less"] = _differences(tested[own], seeds)
    tried = _read_all(folder / TRIED, study.tried)
    return {
        "tested": summary,
        "tried": {name: _figures(seeds) for name, seeds in tried.items()},
    }


def _read_all(folder: Path, names: Iterable[str]) -> dict[str, Seeds]:
    found = {name: read_runs(folder / name) for name in names}
    return {name: seeds for name, seeds in found.items() if seeds is not None}


def _figures(seeds: Seeds) -> dict[str, Any]:
    tested = [facts["test"] for facts in seeds.facts if "test" in facts]
    first = seeds.facts[0]
    figures: dict[str, Any] = {"seeds": len(seeds.facts), "hardware": first["hardware"]}
    for name in ("validation", "best_epoch", "seconds"):
        if all(facts.get(name) is not None for facts in seeds.facts):
            figures[name] = [facts[name] for facts in seeds.facts]
    for name in ("n_parameters", "options", "history", "threads"):
        if name in first:
            figures[name] = first[name]
    if tested:
        figures["test"] = {
            protocol: {metric: [one[protocol][metric] for one in tested] for metric in METRICS}
            for protocol in PROTOCOLS
        }
    return figures


def _differences(own: Seeds, other: Seeds) -> dict[str, list[float]]:
    """Return own less other, each user's mean over seeds, by the bootstrap over users."""
    if not np.array_equal(own.user_ids, other.user_ids):
        raise ValueError(
            "two models of a study were tested on different users; remove the runs of one of them "
            "and run it again"
        )
    found = {}
    for name, values_U in own.values.items():
        differences_U = values_U - other.values[name]
        means = bootstrap_means(differences_U[:, None], own.user_ids)
        low, high = percentiles(means, LEVEL)
        found[name] = [float(differences_U.mean()), float(low[0]), float(high[0])]
    return found
