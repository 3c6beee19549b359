"""The section of docs/performance.md about towers and their rivals."""

from collections.abc import Iterable, Mapping
from typing import Any

from .figures import OURS, Cell, best_ft_transformer, find, median_ms, verdicts
from .measure import Spread
from .report_parts import NOT_MEASURED, Result, labels_of
from .tables import markdown, markdown_verdict, short
from .targets import (
    AIMS_MS,
    MODES,
    N_LAYERS,
    SHAPES,
    SIZES,
    TARGET_SIZE,
    TARGET_THREADS,
    THREADS,
    Shape,
)


def towers_section(result: Result | None) -> str:
    """Return the targets and all times of the towers."""
    if not result or not result["cells"]:
        return f"## Towers\n\n{NOT_MEASURED}\n"
    cells = result["cells"]
    parts = [
        "## Towers",
        "How many times faster FT-Mamba is, d 64, one thread (batch, tokens). The best "
        "FT-Transformer of a cell is the fastest of the variants in the tables below.",
        ratio_table(cells),
        ft_transformers_named(cells),
        *notes(result),
    ]
    for size in SIZES:
        for threads in THREADS:
            here = [one for one in cells if (one["size"], one["threads"]) == (size, threads)]
            if here:
                title = f"### d {size}, {'one thread' if threads == 1 else f'{threads} threads'}"
                ratios = [] if here[0] in at_target(cells) else [ratio_table(cells, size, threads)]
                parts += [title, *ratios, "Milliseconds:", times_table(here)]
    return "\n\n".join([*parts, left_out(cells)]) + "\n"


def ratio_table(
    cells: Iterable[Cell], size: int = TARGET_SIZE, threads: int = TARGET_THREADS
) -> str:
    """Return how many times faster ours is, with marks where there are targets."""
    table = verdicts(cells, size, threads)
    rows = [[target.title, *(markdown_verdict(found) for found in row)] for target, row in table]
    return markdown(["", *map(str, SHAPES)], rows)


def notes(result: Result) -> list[str]:
    """Return the scan that ran, the times beside what was aimed at, and the errors."""
    cells = at_target(result["cells"])
    scans = sorted({cell["scans"][OURS] for cell in cells if OURS in cell["scans"]})
    found = [f"FT-Mamba ran with the scan: {', '.join(scans) or 'none'}."]
    for shape, aim in AIMS_MS.items():
        cell = find(cells, shape, "train")
        median = median_ms(cell, OURS) if cell else None
        if median is not None:
            found.append(f"Training {shape} takes {short(median)} ms; {aim:g} was aimed at.")
    errors = [check["errors"][OURS] for check in result["checks"] if OURS in check["errors"]]
    for what in ("value", "gradient"):
        known = [one[what] for one in errors]
        if known and None not in known:
            found.append(f"Largest error of a {what} against float64: {max(known):.0e}.")
    return [" ".join(found)]


def at_target(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells that have targets."""
    wanted = (TARGET_SIZE, TARGET_THREADS)
    return [cell for cell in cells if (cell["size"], cell["threads"]) == wanted]


def ft_transformers_named(cells: Iterable[Cell]) -> str:
    """Name the fastest FT-Transformer of each cell that has a target."""
    known, rows = list(cells), []
    labels = labels_of()
    for mode in MODES:
        found = [find(known, shape, mode) for shape in SHAPES]
        best = [best_ft_transformer(cell) if cell else None for cell in found]
        rows.append([mode, *(_variant(labels[name]) if name else "-" for name in best)])
    return "\n\n".join(["The best FT-Transformer was:", markdown(["", *map(str, SHAPES)], rows)])


def times_table(cells: Iterable[Cell]) -> str:
    """Return median milliseconds and quartiles of every tower."""
    known, labels = list(cells), labels_of()
    names = [name for name in labels if any(name in cell["times"] for cell in known)]
    places = {(cell["mode"], Shape(cell["batch"], cell["length"])): cell["times"] for cell in known}
    rows = []
    for mode in MODES:
        for name in names:
            found = [
                _time(places.get((mode, shape), {}).get(name), shape.batch) for shape in SHAPES
            ]
            rows.append([f"{mode}: {labels[name]}", *found])
    return markdown(["", *map(str, SHAPES)], rows)


def _variant(label: str) -> str:
    return label.removeprefix("FT-Transformer, ")


def _part(times: Mapping[str, Any], whole: int) -> str:
    """Say what was timed and multiplied where it was not the whole."""
    layers = "" if times["layers"] == N_LAYERS else "one layer"
    batch = "" if times["batch"] == whole else f"batch {times['batch']}"
    words = ", ".join(word for word in (layers, batch) if word)
    return f" (from {words})" if words else ""


def _time(times: Mapping[str, Any] | None, whole: int) -> str:
    if times is None:
        return "-"
    found = Spread.of(times["ms"])
    return f"{short(found.median)} [{short(found.low)}, {short(found.high)}]{_part(times, whole)}"


def left_out(cells: Iterable[Cell]) -> str:
    """Return what was not timed, and why."""
    labels = labels_of()
    reasons = {
        f"{labels.get(name, name)}: {reason.splitlines()[0]}"
        for cell in cells
        for name, reason in cell["left_out"].items()
    }
    lines = [f"- {reason}" for reason in sorted(reasons)]
    return "\n".join(["Not timed:", "", *lines]) if lines else "Every tower was timed."
