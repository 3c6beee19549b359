"""The sections of docs/performance.md that are about the CPU."""

from collections.abc import Mapping
from typing import Any

from .contenders import cpu_contenders
from .measure import Spread
from .memory import memory_ratio
from .plots import log_log_plot
from .scaling import summary
from .tables import MARKS, markdown, short, spread
from .targets import (
    LARGEST_LATENCY_MS,
    LARGEST_MEMORY_RATIO,
    LARGEST_TOKEN_COST_RATIO,
    LEAST_SCAN_GELEM,
    MODES,
)

Result = Mapping[str, Any]
NOT_MEASURED = "Not measured."
OTHER_BENCHMARKS = {
    "data_path": "Batches from Arrow files",
    "embedding": "Embedding a catalogue",
    "evaluation": "Evaluation",
    "pipeline": "The pipeline beside the bare model",
    "processor": "Raw records to tensors",
    "recommendation": "One recommendation",
    "histories": "Training on histories",
    "streaming": "Keeping users fresh",
    "endpoint": "An inference endpoint under load",
    "loading": "Loading a checkpoint",
}
SAID_ELSEWHERE = (
    *("benchmark", "environment", "machine", "commit"),
    *("python", "torch", "numpy", "pyarrow", "transformers"),
)
STREAMING_PLOT = "performance/streaming.svg"
SPEED_FILES = ("towers", "memory", "scaling", "latency", "gpu")


def machines_section(results: Mapping[str, Result]) -> str:
    """Say where, with what and when each result was measured."""
    title = "## Machine and versions"
    if not results:
        return f"{title}\n\n{NOT_MEASURED}\n"
    places: dict[str, list[str]] = {}
    for name, result in results.items():
        places.setdefault(machine(result), []).append(name)
    lines = [f"- {', '.join(names)}: {place}" for place, names in places.items()]
    return "\n".join([title, "", *lines, ""])


def machine(result: Result) -> str:
    """Say in a line where, with what and when a result was measured."""
    found = result["environment"]
    flags = f" ({', '.join(found['flags'])})" if found["flags"] else ""
    device = f"{found['gpu']}, CUDA {found['cuda']}; " if "gpu" in found else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    quick = " **A quick run of a few rounds: not the result.**" if result["quick"] else ""
    return (
        f"{device}{found['processor']}{flags}, {found['cores']} cores, {found['memory_gib']:g} "
        f"GiB; {found['system']}, Python {found['python']}, {versions}; commit "
        f"{found['commit']}, {found['date']}.{quick}"
    )


def memory_section(result: Result | None) -> str:
    """Return the peak memory of a training step."""
    title = "## Memory of a training step"
    if not result or memory_ratio(result["megabytes"]) is None:
        return f"{title}\n\n{NOT_MEASURED}\n"
    ratio = memory_ratio(result["megabytes"]) or 0.0
    labels = labels_of()
    rows = [
        [labels.get(name, name), short(megabytes)]
        for name, megabytes in result["megabytes"].items()
    ]
    parts = [
        title,
        f"Growth of a fresh process over two steps at ({result['batch']}, {result['length']}), "
        f"d {result['size']}. FT-Mamba takes **{ratio:.2f}** times what the thriftiest "
        f"FT-Transformer does; at most {LARGEST_MEMORY_RATIO:g} "
        f"{MARKS[ratio <= LARGEST_MEMORY_RATIO]}",
        markdown(["tower", "MB"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def scaling_section(result: Result | None, plots: Mapping[str, str]) -> str:
    """Return the cost of a token against the length of the record."""
    title = "## Cost against the number of tokens"
    if not result or not result["lines"]:
        return f"{title}\n\n{NOT_MEASURED}\n"
    labels, rows = labels_of(), []
    for line in result["lines"]:
        found, points = summary(line), line["points"]
        mark = ""
        if line["name"] == "mamba":
            reaches = found["token_cost_ratio"] <= LARGEST_TOKEN_COST_RATIO
            mark = f", at most {LARGEST_TOKEN_COST_RATIO:g} {MARKS[reaches]}"
        rows.append([
            line["mode"],
            labels.get(line["name"], line["name"]),
            f"{points[0]['length']:,} to {points[-1]['length']:,}",
            f"{found.get('exponent', float('nan')):.2f}",
            f"{found['token_cost_ratio']:g}{mark}",
        ])  # fmt: skip
    header = ["", "tower", "tokens", "exponent", "dearest token / cheapest"]
    pictures = [f"![{path}]({path})" for path in plots]
    note = (
        f"{result['tokens']:,} tokens a batch at every length, d {result['size']}, one thread. The "
        "exponent is the slope of log cost of a record over log tokens."
    )
    return "\n\n".join([title, note, markdown(header, rows), *pictures]) + "\n"


def scaling_plots(result: Result | None) -> dict[str, str]:
    """Return the plots of milliseconds a record against tokens, by path."""
    if not result or not result["lines"]:
        return {}
    labels, plots = labels_of(), {}
    for mode in MODES:
        lines = {
            labels.get(line["name"], line["name"]): [
                (point["length"], point["ms_a_record"]) for point in line["points"]
            ]
            for line in result["lines"]
            if line["mode"] == mode
        }
        if not lines:
            continue
        ticks = sorted({x for points in lines.values() for x, _ in points})
        title = f"{'Training step' if mode == 'train' else 'Inference'} of one record"
        plots[f"performance/scaling-{mode}.svg"] = log_log_plot(
            title, "tokens", "ms a record", lines, ticks
        )
    return plots


def streaming_plot(result: Result | None) -> dict[str, str]:
    """Return the plot of what an event costs from a state, and computed again, by path."""
    if not result:
        return {}
    figures = result["figures"]
    lines = {
        "from the state": _by_events(figures["event"], "after "),
        "all events again": _by_events(figures["again"], ""),
    }
    ticks = sorted({x for points in lines.values() for x, _ in points})
    title = "A user's embedding after one more event"
    plot = log_log_plot(title, "events before it", "ms", lines, ticks)
    return {STREAMING_PLOT: plot}


def _by_events(found: Mapping[str, Any], prefix: str) -> list[tuple[float, float]]:
    return [
        (float(words.removeprefix(prefix).split()[0].replace(",", "")), one["median_ms"])
        for words, one in found.items()
    ]


def latency_section(result: Result | None) -> str:
    """Return the time of one record, and the speed of the scan alone."""
    title = "## One record, and the scan alone"
    if not result or not result["ms"]:
        return f"{title}\n\n{NOT_MEASURED}\n"
    labels, rows = labels_of(), []
    for name, found in result["ms"].items():
        reaches = found["median"] <= LARGEST_LATENCY_MS
        mark = f", under {LARGEST_LATENCY_MS:g} {MARKS[reaches]}" if name == "mamba" else ""
        rows.append([labels.get(name, name), f"{_spread(found)}{mark}"])
    scans = [
        [
            f"{one['name']}, {one['part']}",
            f"({one['batch']}, {one['length']})",
            f"{short(one['gelem'])}{_scan_mark(one)}",
        ]
        for one in result["scans"]
    ]
    place = f"({result['batch']}, {result['length']}), d {result['size']}, 4 layers"
    parts = [
        title,
        markdown(["tower", f"ms at {place}"], rows),
        "Thousand million elements (batch x tokens x channels x state) a second, channels 128:",
        markdown(["scan", "shape", "Gelem/s"], scans),
    ]
    return "\n\n".join(parts) + "\n"


def other_sections(results: Mapping[str, Result]) -> str:
    """Return the benchmarks of the rest of the project as they printed their figures."""
    others = {name: name for name in sorted(results) if name not in OTHER_BENCHMARKS}
    parts = []
    for name, title in (OTHER_BENCHMARKS | others).items():
        if name in SPEED_FILES:
            continue
        result = results.get(name)
        parts.append(f"### {title}\n")
        if result is None:
            parts.append(f"{NOT_MEASURED}\n")
            continue
        parts.append(f"`{result['command']}`\n")
        if "figures" in result:
            rows = [[key, value] for key, value in _flat(result["figures"])]
            parts.append(markdown(["", ""], rows) + "\n")
            if name == "streaming":
                parts.append(f"![What an event costs]({STREAMING_PLOT})\n")
        else:
            parts.append("```text\n" + "\n".join(result["output"]) + "\n```\n")
    return "\n".join(["## The rest of the path\n", *parts])


def labels_of() -> dict[str, str]:
    """Return what contenders are called in tables."""
    return {name: one.label for name, one in cpu_contenders().items()}


def _spread(found: Mapping[str, Any]) -> str:
    low, high = found["quartiles"]
    return spread(Spread(found["median"], low, high))


def _scan_mark(found: Mapping[str, Any]) -> str:
    if found["name"] != "cpu":
        return ""
    least = LEAST_SCAN_GELEM[found["part"]]
    return f", target {least:g} {MARKS[found['gelem'] >= least]}"


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in figures.items():
        if key in SAID_ELSEWHERE:
            continue
        if isinstance(value, Mapping) and set(value) == {"median", "min", "max"}:
            low, median, high = (short(value[one]) for one in ("min", "median", "max"))
            rows.append((f"{prefix}{key}".replace("_", " "), f"{median} ({low} to {high})"))
        elif isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            rows.append((f"{prefix}{key}".replace("_", " "), text))
    return rows
