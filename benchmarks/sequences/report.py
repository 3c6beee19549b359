"""The tables and pictures of the study of histories, from `docs/results/sequences.json`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sequences.runs import RUNS
from benchmarks.sequences.study import read_study
from benchmarks.sequences.summary import summary_of
from ftmamba.atomic import whole_file

FIGURES = Path("docs/results/sequences.json")
TABLES = Path("docs/results/sequences.md")
CURVES = Path("docs/results/sequences-{study}.svg")
STUDIES = {
    "ml-1m": "MovieLens-1M",
    "amazon-beauty": "Amazon Beauty, 5-core",
    "ml-100k": "MovieLens-100K",
}
"""Studies with their titles, in the order of the document."""


def report() -> None:
    """Write the figures of all runs that are there, then what is made of them."""
    summaries = {name: summary_of(read_study(name), RUNS) for name in STUDIES}
    figures = {name: found for name, found in summaries.items() if any(found.values())}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(FIGURES) as path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    with whole_file(TABLES) as path:
        path.write_text(tables(figures), encoding="utf-8")
    for name, models in figures.items():
        if models["tested"]:
            draw_curves(models["tested"], Path(str(CURVES).format(study=name)), STUDIES[name])


def tables(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the document of all studies."""
    lines = [
        "# Histories: figures of the study",
        "",
        "Made by `python -m benchmarks.sequences report`; do not edit. What they mean stands in",
        "[sequences.md](../sequences.md). Mean over seeds ± their standard deviation; differences",
        "are those of the first row less the row's own, with the 95 % interval of the bootstrap",
        "over users, each user's values averaged over seeds. Minutes are of one busy core, the",
        "median of the seeds.",
    ]
    for name, models in figures.items():
        lines += ["", f"## {STUDIES[name]}"]
        if models["tested"]:
            lines += ["", *tested_table(models["tested"])]
            lines += ["", f"![Learning curves](sequences-{name}.svg)"]
        if models["tried"]:
            lines += ["", "On validation alone:", "", *tried_table(models["tried"])]
    return "\n".join(lines) + "\n"


def tested_table(models: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of models that were tested."""
    yield (
        "| model | seeds | NDCG@10 | HR@10 | not masked NDCG@10 | HR@10 | first row less this, "
        "NDCG@10 | validation | best epoch | minutes |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, one in models.items():
        masked, free = one["test"]["masked"], one["test"]["not masked"]
        cells = [
            name,
            str(one["seeds"]) if "best_epoch" in one else "-",
            *(spread(values) for values in (masked["NDCG@10"], masked["HR@10"])),
            *(spread(values) for values in (free["NDCG@10"], free["HR@10"])),
            difference(one.get("less", {}).get("masked/NDCG@10")),
            spread(one.get("validation", [])),
            ", ".join(map(str, one.get("best_epoch", []))) or "-",
            f"{np.median(one['seconds']) / 60:.1f}" if "seconds" in one else "-",
        ]
        yield f"| {' | '.join(cells)} |"


def tried_table(models: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of what was tried on validation alone."""
    yield "| variant | validation NDCG@10 | epochs | parameters | minutes |"
    yield "|---|---|---|---|---|"
    for name, one in models.items():
        cells = [
            name,
            spread(one["validation"]),
            str(len(one["history"])),
            f"{one['n_parameters']:,}",
            f"{np.median(one['seconds']) / 60:.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of several, the standard deviation."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def difference(found: Sequence[float] | None) -> str:
    """Return a difference and its interval."""
    return "-" if found is None else f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def draw_curves(models: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw the validation score of every tested network's first seed by epoch."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "ftmamba"}):
        figure = Figure(figsize=(7.5, 4), layout="constrained")
        axes = figure.subplots()
        for name, one in models.items():
            rows = [row for row in one.get("history", []) if "score" in row]
            if rows:
                axes.plot(
                    [row["epoch"] for row in rows],
                    [row["score"] for row in rows],
                    label=name, marker="o", markersize=3, linewidth=1.5,
                )  # fmt: skip
        axes.set_title(f"{title}: NDCG@10 on validation", loc="left")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
