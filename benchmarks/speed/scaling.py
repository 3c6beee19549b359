"""What a token costs as records grow: the same number of tokens at every length.

    python -m benchmarks.speed.scaling --output scaling.json

All lengths of all towers run in turns in one process, one thread, so that lengths may be compared
with each other. Slow rivals stop at the length where one call would take too long.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .check import WrongResultError, check_contender, demand
from .contenders import Contender, cpu_contenders
from .measure import (
    Limits,
    Spread,
    Task,
    Timer,
    Times,
    inference_task,
    interleave,
    training_task,
    use_threads,
)
from .results import ROOT, environment, rounded, write_result
from .targets import (
    MODES,
    N_LAYERS,
    N_SCALING_TOKENS,
    SCALING_LENGTHS,
    TARGET_SIZE,
    Shape,
)

NAMES = ("mamba", "ssd", "ftt 32", "ftt 32 onednn", "transformers", "mambapy")
QUICK_LENGTHS = (11, 41, 200)
LONGEST_CALL = 8.0
"""Seconds: a tower whose call takes longer is not tried on longer records."""


def main() -> None:
    """Measure both modes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs/performance/scaling.json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", type=int, default=N_SCALING_TOKENS)
    options = parser.parse_args()
    timer = use_threads(1)
    lengths = QUICK_LENGTHS if options.quick else SCALING_LENGTHS
    limits = Limits(3, 1.0) if options.quick else Limits(20, 4.0, fewest=3)
    contenders = cpu_contenders()
    names = [name for name in NAMES if name in contenders]
    if options.quick:
        names = [name for name in names if not contenders[name].slow]
    result: dict[str, Any] = {
        "benchmark": "scaling",
        "quick": options.quick,
        "environment": environment(),
        "size": TARGET_SIZE,
        "tokens": options.tokens,
        "lines": [],
        "left_out": {},
    }
    for name in names:
        problem = wrong(contenders[name], lengths)
        if problem:
            result["left_out"][name] = problem
    allowed = [contenders[name] for name in names if name not in result["left_out"]]
    for mode in MODES:
        result["lines"] += scale(allowed, mode, lengths, options.tokens, timer, limits)
        write_result(options.output, result)
    for line in result["lines"]:
        print(f"{line['mode']} {line['name']}: {json.dumps(summary(line))}")


def wrong(contender: Contender, lengths: Sequence[int]) -> str:
    """Return why a contender may not be timed, or nothing."""
    try:
        if contender.checked:
            for length in (lengths[0], lengths[-1]):
                errors = check_contender(contender, TARGET_SIZE, Shape(1, length))
                demand(contender.name, errors)
        else:
            contender.build(TARGET_SIZE, 1)
    except (ImportError, RuntimeError, WrongResultError) as error:
        return str(error)
    return ""


def scale(
    contenders: Iterable[Contender],
    mode: str,
    lengths: Iterable[int],
    n_tokens: int,
    timer: Timer,
    limits: Limits,
) -> list[dict[str, Any]]:
    """Time towers at all lengths in turns; return a line of the plot a tower."""
    tasks: dict[tuple[str, int], Task] = {}
    times: dict[tuple[str, int], Times] = {}
    for contender in contenders:
        tower = contender.build(TARGET_SIZE, N_LAYERS)
        for length in lengths:
            key = contender.name, length
            tokens_BLD = torch.randn(max(1, n_tokens // length), length, TARGET_SIZE)
            weight_BD = torch.randn(len(tokens_BLD), TARGET_SIZE)
            if mode == "train":
                tasks[key] = training_task(tower, tokens_BLD, weight_BD)
            else:
                tasks[key] = inference_task(tower, tokens_BLD)
            interleave({key: tasks[key]}, timer, Limits(1, 0, fewest=1), times)
            if times[key].rounds[0] > LONGEST_CALL:
                break
    interleave(tasks, timer, limits, times)
    points: dict[str, list[dict[str, Any]]] = {}
    for name, length in tasks:
        batch = max(1, n_tokens // length)
        spread = Spread.of(times[name, length].rounds)
        low, median, high = (1e3 * x / batch for x in (spread.low, spread.median, spread.high))
        point = {"length": length, "batch": batch, "ms_a_record": rounded(median)}
        quartiles = {"quartiles": [rounded(low), rounded(high)]}
        points.setdefault(name, []).append({**point, **quartiles})
    return [{"mode": mode, "name": name, "points": found} for name, found in points.items()]


def summary(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the exponent of the cost in the length, and the dearest token over the cheapest."""
    lengths = [point["length"] for point in line["points"]]
    costs = [point["ms_a_record"] for point in line["points"]]
    tokens = [cost / length for cost, length in zip(costs, lengths, strict=True)]
    found = {"token_cost_ratio": round(max(tokens) / min(tokens), 2)}
    if len(lengths) > 1:
        found["exponent"] = round(slope(lengths, costs), 3)
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the line through log y over log x, by least squares."""
    log_x, log_y = [math.log(one) for one in x], [math.log(one) for one in y]
    mean_x, mean_y = sum(log_x) / len(x), sum(log_y) / len(y)
    pairs = list(zip(log_x, log_y, strict=True))
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in pairs)
    return covariance / sum((a - mean_x) ** 2 for a in log_x)


if __name__ == "__main__":
    main()
