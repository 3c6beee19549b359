"""`python -m ftmamba runs`: the results of several runs in one table."""

import csv
import io
import json
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RESULTS_FILE, RECIPE_FILE = "all_results.json", "recipe.yaml"
METRICS = ("HR", "R", "MRR", "coverage")
"""What is shown beside the metric asked for, at its length of the list."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder that holds finished runs")
    parser.add_argument("--metric", default="NDCG@10", help="to sort by (default: NDCG@10)")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")


def run(arguments: Namespace) -> None:
    """Print the table, the best run on top."""
    rows = run_table(find_runs(arguments.folder), arguments.metric)
    print(as_csv(rows) if arguments.csv else as_markdown(rows))


@dataclass(frozen=True)
class RunResults:
    """What a run has written down.

    Attributes:
        name: of its folder.
        results: what `all_results.json` holds.
        recipe: what `recipe.yaml` holds; empty without.
    """

    name: str
    results: Mapping[str, Any]
    recipe: Mapping[str, Any]


def find_runs(folder: Path) -> list[RunResults]:
    """Read every run in a folder, or below it, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: a run's files are damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; name one that holds finished runs")
    found = sorted(path.parent for path in folder.rglob(RESULTS_FILE))
    if not found:
        raise FileNotFoundError(
            f"no finished run in {str(folder)!r}: none of its folders holds {RESULTS_FILE}"
        )
    return [_read(path, folder) for path in found]


def run_table(runs: Sequence[RunResults], metric: str) -> list[list[str]]:
    """Return the table's rows, the header first, the best run on top.

    Runs of other splits or protocols do not compare: each row says its own.

    Raises:
        ValueError: no run has the metric.
    """
    known = [run for run in runs if metric in _own(run)[1].get("metrics", {})]
    if not known:
        from modeling_ftmamba.configuration_ftmamba import near

        every = sorted({name for run in runs for name in _own(run)[1].get("metrics", {})})
        raise ValueError(
            f"no run has the metric {metric!r}{near(metric, every)}; they have: {', '.join(every)}"
        )
    _, at, k = metric.partition("@")
    beside = [f"{name}{at}{k}" for name in METRICS if at and f"{name}{at}{k}" != metric]
    header = ["run", "model", f"{metric} [95 %]", *beside, "best other", "parameters",
              "training s", "seed", "data", "split", "test users"]  # fmt: skip
    known.sort(key=lambda run: -_own(run)[1]["metrics"][metric])
    return [header, *(_row(run, metric, beside) for run in known)]


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay the rows out as a Markdown table that also reads well in a terminal."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Write the rows as CSV, such that a spreadsheet takes no cell for a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [f"'{cell}" if re.match(r"[=+@\t\r]|-\D", cell) else cell for cell in row] for row in rows
    )
    return text.getvalue().rstrip("\n")


def _read(folder: Path, top: Path) -> RunResults:
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        path = folder / RECIPE_FILE
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"the results in {str(folder)!r} are damaged ({error}); remove that folder, or name "
            "one without it"
        ) from error
    if not isinstance(results, dict) or not isinstance(recipe or {}, dict):
        raise ValueError(f"the results in {str(folder)!r} are of another program; name its runs")
    name = folder.relative_to(top).as_posix()
    return RunResults(folder.resolve().name if name == "." else name, results, recipe or {})


def _own(run: RunResults) -> tuple[str, Mapping[str, Any]]:
    models: Mapping[str, Any] = run.results.get("models", {})
    return next(iter(models.items()), ("", {}))


def _row(run: RunResults, metric: str, beside: Sequence[str]) -> list[str]:
    name, own = _own(run)
    low, high = own.get("intervals", {}).get(metric, (None, None))
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    metrics = own["metrics"]
    parameters = run.results.get("n_parameters")
    cost = run.results.get("cost") or {}
    seconds = cost.get("seconds") or run.results.get("training", {}).get("seconds")
    return [
        run.name,
        name,
        f"{metrics[metric]:.3f}{interval}",
        *(f"{metrics[other]:.3f}" if other in metrics else "" for other in beside),
        _best_other(run, metric),
        "" if parameters is None else str(parameters),
        "" if seconds is None else f"{seconds:.0f}",
        str(run.results.get("seed", "")),
        _option(run, "data", "name", "interactions"),
        _option(run, "split", "kind"),
        str(own.get("n_users", "")),
    ]


def _option(run: RunResults, section: str, *names: str) -> str:
    """Return the first option that is set, on one line; a section may be its main option alone."""
    values = run.recipe.get(section) or {}
    if not isinstance(values, dict):
        return " ".join(str(values).split())
    found = next((values[name] for name in names if values.get(name)), "")
    return " ".join(str(found).split())


def _best_other(run: RunResults, metric: str) -> str:
    own = _own(run)[0]
    others = {
        name: model["metrics"][metric]
        for name, model in run.results["models"].items()
        if name != own and metric in model.get("metrics", {})
    }
    if not others:
        return ""
    best = max(others, key=others.__getitem__)
    return f"{best} {others[best]:.3f}"
