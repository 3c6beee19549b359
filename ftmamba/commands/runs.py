"""`python -m ftmamba runs`: the results of several runs in one table."""

import csv
import io
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftmamba.terminal import printable

MOST_CHARACTERS = 120
"""Of a cell; the rest is left out."""

METRICS = ("HR", "R", "MRR", "coverage")
"""Shown beside the metric asked for, at the same length of the list."""

Run = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""A run's folder, its results and its recipe (empty without one)."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder that holds finished runs")
    parser.add_argument("--metric", default="NDCG@10", help="to sort by (default: NDCG@10)")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")


def run(arguments: Namespace) -> None:
    """Print the table, the best run on top."""
    rows = run_table(find_runs(arguments.folder), arguments.metric)
    print(as_csv(rows) if arguments.csv else as_markdown(rows))


def find_runs(folder: Path) -> list[Run]:
    """Read every run in a folder, or below it, in the order of their names."""
    from ftmamba.checkpoint import RECIPE_FILE, RESULTS_FILE, read_recipe_file
    from ftmamba.checks import read_json

    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; name one that holds finished runs")
    runs: list[Run] = []
    for path in sorted(found.parent for found in folder.rglob(RESULTS_FILE)):
        try:
            results, recipe = read_json(path / RESULTS_FILE), read_recipe_file(path / RECIPE_FILE)
            _check(results)
        except ValueError as error:
            raise ValueError(
                f"the results in {str(path)!r} are damaged, or not of this program ({error}); "
                "remove that folder, or name one without it"
            ) from None
        name = path.relative_to(folder).as_posix()
        runs.append((path.resolve().name if name == "." else name, results, recipe))
    if not runs:
        raise FileNotFoundError(
            f"no finished run in {str(folder)!r}: none of its folders holds {RESULTS_FILE}"
        )
    return runs


def _check(results: Mapping[str, Any]) -> None:
    """Raise ValueError where results are not made as those of a run are."""
    try:
        models = list(results.get("models", {}).values())
        numbers = [number for own in models for number in own.get("metrics", {}).values()]
        pairs = [pair for own in models for pair in own.get("intervals", {}).values()]
        bounds = [bound for low, high in pairs for bound in (low, high)]
        costs = [(results.get(part) or {}).get("seconds") for part in ("cost", "training")]
        numbers += [one for one in (*bounds, *costs) if one is not None]
        if not all(abs(number) <= sys.float_info.max for number in numbers):
            raise ValueError("a figure is not finite")
    except (AttributeError, TypeError) as error:
        raise ValueError(f"they have another form: {error}") from None


def run_table(runs: Sequence[Run], metric: str) -> list[list[str]]:
    """Return the table's rows, the header first, the best run on top.

    Results of different splits or protocols are not comparable: each row names its own.
    """
    found = [
        (run, name, own)
        for run in runs
        for name, own in list(run[1].get("models", {}).items())[:1]
        if metric in own.get("metrics", {})
    ]
    if not found:
        from modeling_ftmamba.configuration_ftmamba import near

        models = (model for _, results, _ in runs for model in results.get("models", {}).values())
        every = sorted({name for model in models for name in model.get("metrics", {})})
        raise ValueError(
            f"no run has the metric {metric!r}{near(metric, every)}; they have: {', '.join(every)}"
        )
    _, at, k = metric.partition("@")
    beside = [f"{name}{at}{k}" for name in METRICS if at and f"{name}{at}{k}" != metric]
    header = ["run", "model", f"{metric} [95 %]", *beside, "best other", "parameters",
              "training s", "seed", "data", "split", "test users"]  # fmt: skip
    found.sort(key=lambda each: -each[2]["metrics"][metric])
    rows = [header]
    for (folder, results, recipe), name, own in found:
        metrics = own["metrics"]
        low, high = own.get("intervals", {}).get(metric, (None, None))
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        others = {
            other: model["metrics"][metric]
            for other, model in results["models"].items()
            if other != name and metric in model.get("metrics", {})
        }
        best = max(others, key=others.__getitem__, default="")
        seconds = (results.get("cost") or results.get("training") or {}).get("seconds")
        rows.append(
            [
                _cell(folder),
                _cell(name),
                f"{metrics[metric]:.3f}{interval}",
                *(f"{metrics[other]:.3f}" if other in metrics else "" for other in beside),
                f"{_cell(best)} {others[best]:.3f}" if best else "",
                _cell(results.get("n_parameters", "")),
                "" if seconds is None else f"{seconds:.0f}",
                _cell(results.get("seed", "")),
                _option(recipe, "data", "name", "interactions"),
                _option(recipe, "split", "kind"),
                _cell(own.get("n_users", "")),
            ]
        )
    return rows


def _option(recipe: Mapping[str, Any], section: str, *names: str) -> str:
    options = recipe.get(section) or {}
    if not isinstance(options, Mapping):
        return _cell(options)
    return next((_cell(options[name]) for name in names if options.get(name)), "")


def _cell(value: object) -> str:
    return printable(str(value)[:MOST_CHARACTERS])


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
    """Write the rows as CSV, such that a spreadsheet reads no cell as a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [f"'{cell}" if re.match(r"[=+@\t\r]|-\D", cell) else cell for cell in row] for row in rows
    )
    return text.getvalue().rstrip("\n")
