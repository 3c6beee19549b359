"""The section of docs/performance.md about GPUs."""

from collections.abc import Iterable, Mapping
from typing import Any

from .contenders import gpu_contenders
from .figures import OURS, Cell, best_ft_transformer, ratio
from .measure import Spread
from .report_parts import Result
from .tables import MARKS, markdown, short, spread
from .targets import (
    GPU_FLOOR_MS,
    GPU_SHAPE,
    GPU_WINS_FROM_LENGTH,
    LARGEST_GPU_FLOOR_RATIO,
    LEAST_GPU_RATIO_TO_MAMBA_SSM,
    MODES,
)

TITLE = "## GPU"
NOT_MEASURED = "Not measured: no GPU could be used. `python -m benchmarks.gpu` measures one."
FLOOR_OF_MODE = {"infer": "forward", "train": "forward + backward"}


def gpu_section(result: Result | None) -> str:
    """Return the times on a GPU, or say that there are none."""
    if not result or not result["cells"] or result["device"] == "cpu":
        return f"{TITLE}\n\n{NOT_MEASURED}\n"
    ceiling = result["ceiling"]
    rates = ", ".join(
        f"{flops / 1e12:.0f} TFLOP/s in {dtype.removeprefix('torch.')}"
        for dtype, flops in ceiling["flops_a_second"].items()
    )
    cells = result["cells"]
    parts = [
        TITLE,
        f"Times by CUDA events, d {result['size']}, 4 layers. The ceiling was measured on the "
        f"device: {ceiling['bytes_a_second'] / 1e9:,.0f} GB/s of copying, {rates}. A tower's part "
        "of it is the least time for its bytes or its FLOPs, whichever is longer, over its time.",
        "### One whole layer",
        layer_table(result["layers"]),
        "### Towers: how many times faster FT-Mamba is",
        ratio_table(cells),
    ]
    for dtype in dict.fromkeys(cell["dtype"] for cell in cells):
        for mode in MODES:
            here = [cell for cell in cells if (cell["dtype"], cell["mode"]) == (dtype, mode)]
            if here:
                parts += [f"### Milliseconds (part of the ceiling), {dtype}, {mode}", times(here)]
    parts.append(left_out(result))
    return "\n\n".join(parts) + "\n"


def layer_table(layers: Iterable[Cell]) -> str:
    """Return milliseconds of a layer beside the floor and mamba-ssm's."""
    labels, rows = gpu_labels(), []
    for cell in layers:
        for name, found in cell["times"].items():
            place = f"({cell['batch']:,}, {cell['length']})"
            rows.append([
                f"{cell['dtype']}, {FLOOR_OF_MODE[cell['mode']]}",
                labels[name],
                place,
                spread(Spread.of(found["ms"])),
                f"{100 * found['of_ceiling']:.0f} %",
                layer_verdict(cell, name),
            ])  # fmt: skip
    return markdown(["", "layer", "shape", "ms", "of the ceiling", ""], rows)


def layer_verdict(cell: Cell, name: str) -> str:
    """Return the targets that a layer has, with their marks."""
    whole = (cell["batch"], cell["length"]) == (GPU_SHAPE.batch, GPU_SHAPE.length)
    if name != OURS or cell["dtype"] != "bfloat16" or not whole:
        return ""
    floor = GPU_FLOOR_MS[FLOOR_OF_MODE[cell["mode"]]]
    times_floor = cell["times"][name]["median_ms"] / floor
    words = [
        f"{times_floor:.1f} times the floor of {floor:g} ms, at most {LARGEST_GPU_FLOOR_RATIO:g} "
        f"{MARKS[times_floor <= LARGEST_GPU_FLOOR_RATIO]}"
    ]
    faster = ratio(cell, "mamba_ssm")
    if faster is not None:
        reaches = faster.median >= LEAST_GPU_RATIO_TO_MAMBA_SSM
        words.append(
            f"{short(faster.median)} times faster than mamba-ssm, at least "
            f"{LEAST_GPU_RATIO_TO_MAMBA_SSM:g} {MARKS[reaches]}"
        )
    return "; ".join(words)


def ratio_table(cells: Iterable[Cell]) -> str:
    """Return the ratios to the best FT-Transformer and to the other Mambas."""
    rows = []
    for cell in cells:
        best = best_ft_transformer(cell)
        labels = gpu_labels()
        rows.append([
            f"{cell['dtype']}, {cell['mode']}",
            f"({cell['batch']:,}, {cell['length']:,})",
            f"{_ratio(cell, best)}{_wins(cell, best)}",
            labels[best] if best else "-",
            _ratio(cell, "mamba_ssm"),
            _ratio(cell, "transformers"),
        ])  # fmt: skip
    header = ["", "shape", "best FT-Transformer", "which", "mamba-ssm", "transformers"]
    return markdown(header, rows)


def times(cells: Iterable[Cell]) -> str:
    """Return milliseconds of every tower at every length, and its part of the ceiling."""
    known, labels = list(cells), gpu_labels()
    names = [name for name in labels if any(name in cell["times"] for cell in known)]
    rows = [[labels[name], *(_time(cell["times"].get(name)) for cell in known)] for name in names]
    return markdown(["", *(f"({cell['batch']:,}, {cell['length']:,})" for cell in known)], rows)


def left_out(result: Result) -> str:
    """Return what was not timed, and why."""
    labels = gpu_labels()
    reasons = {f"{name}: {reason}" for name, reason in result["refused"].items()}
    reasons |= {
        f"{labels[name]}: {reason}"
        for cell in (*result["layers"], *result["cells"])
        for name, reason in cell["left_out"].items()
    }
    lines = [f"- {reason}" for reason in sorted(reasons)]
    return "\n".join(["Not timed:", "", *lines]) if lines else "Every tower was timed."


def gpu_labels() -> dict[str, str]:
    """Return what contenders are called in tables."""
    return {name: one.label for name, one in gpu_contenders().items()}


def _ratio(cell: Cell, rival: str | None) -> str:
    found = ratio(cell, rival) if rival else None
    return "-" if found is None else spread(found)


def _wins(cell: Cell, rival: str | None) -> str:
    found = ratio(cell, rival) if rival else None
    if found is None or cell["length"] < GPU_WINS_FROM_LENGTH:
        return ""
    return f", above 1 {MARKS[found.median > 1]}"


def _time(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{short(found['median_ms'])} ({100 * found['of_ceiling']:.0f} %)"
