"""Time all towers at one shape, width and number of threads, in one process.

    python -m benchmarks.speed.tower_cell --batch 256 --length 11 --size 64 --threads 1

First every tower of ours is checked against float64, and a wrong one is not timed. Then training
steps are timed in turns, then inference. Prints a line of JSON for the checks and one a mode;
`towers.py` runs all cells.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .check import Errors, WrongResultError, check_contender, demand
from .contenders import FT_TRANSFORMER, OWN, Contender, cpu_contenders
from .measure import (
    Limits,
    Spread,
    Task,
    Timer,
    Times,
    cpu_timer,
    inference_task,
    interleave,
    training_task,
    use_threads,
)
from .results import rounded
from .targets import MODES, N_LAYERS, Shape
from .towers_under_test import scan_in_use

LONGEST_CALL = 15.0
"""Seconds; a slow rival that would take longer is timed in part and the time multiplied."""
SMALLEST_PART = 8
WARM_UP = 2.0
"""Seconds; a call that takes longer needs no warm-up."""
HOPELESS = 1.3
"""A variant of the FT-Transformer that is so much slower than the fastest is timed no further."""
N_FIRST_ROUNDS = 4


@dataclass
class Cell:
    """The towers of one shape, and why others are not among them.

    Attributes:
        size: width D.
        shape: batch and tokens.
        longest: seconds that a call of a slow rival may take.
        towers: by name.
        left_out: why a tower is not there.
        errors: of those that were checked.
        refused: why a tower is wrong.
    """

    size: int
    shape: Shape
    longest: float = LONGEST_CALL
    towers: dict[str, nn.Module] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """How much of a tower and of a batch is timed; the time is multiplied by the rest."""

    layers: int
    batch: int

    def scale(self, cell: Cell) -> float:
        """Return how many times this part is the whole."""
        return N_LAYERS / self.layers * cell.shape.batch / self.batch


def main() -> None:
    """Print the checks, then each mode, as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a tower in a mode")
    parser.add_argument(
        "--longest", type=float, default=LONGEST_CALL, help="of a slow rival's call"
    )
    parser.add_argument("--only", nargs="*", help="names of towers; all by default")
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    options = parser.parse_args()
    timer = use_threads(options.threads)
    cell = Cell(options.size, Shape(options.batch, options.length), options.longest)
    prepare(cell, options.only)
    place = {name: getattr(options, name) for name in ("threads", "size", "batch", "length")}
    errors = {name: one.to_dict() for name, one in cell.errors.items()}
    print(json.dumps({**place, "errors": errors, "refused": cell.refused}), flush=True)
    clock = "CPU time" if timer is cpu_timer else "wall clock"
    for mode in options.modes:
        limits = Limits(options.rounds, options.seconds, warm_up=WARM_UP)
        measured = time_mode(cell, mode, timer, limits)
        print(json.dumps({**place, "mode": mode, "clock": clock, **measured}), flush=True)


def prepare(cell: Cell, only: Iterable[str] | None = None) -> None:
    """Check and build the towers of a cell."""
    for name, contender in cpu_contenders().items():
        if only is not None and name not in only:
            continue
        torch.manual_seed(0)
        try:
            if contender.checked:
                cell.errors[name] = check_contender(contender, cell.size, cell.shape)
                demand(name, cell.errors[name])
            cell.towers[name] = contender.build(cell.size, N_LAYERS)
        except WrongResultError as error:
            cell.refused[name] = cell.left_out[name] = str(error)
            print(error, file=sys.stderr)
        except (ImportError, RuntimeError, ValueError) as error:
            cell.left_out[name] = str(error)
            print(f"{name} cannot run: {error}", file=sys.stderr)


def time_mode(cell: Cell, mode: str, timer: Timer, limits: Limits) -> dict[str, Any]:
    """Time the towers in turns; slow rivals on fewer rounds, hopeless variants on a few."""
    contenders = cpu_contenders()
    generator = torch.Generator().manual_seed(0)
    tokens_BLD = torch.randn(cell.shape.batch, cell.shape.length, cell.size, generator=generator)
    weight_BD = torch.randn(cell.shape.batch, cell.size, generator=generator)
    left_out, tasks, parts = dict(cell.left_out), {}, {}
    for name, tower in cell.towers.items():
        contender = contenders[name]
        if reason := contender.why_not(mode, cell.shape.length):
            left_out[name] = reason
            continue
        parts[name] = part = _affordable(contender, cell, mode, timer)
        timed = tower if part.layers == N_LAYERS else contender.build(cell.size, part.layers)
        place = slice(part.batch)
        tasks[name] = _task(mode, timed, tokens_BLD[place], weight_BD[place], part.scale(cell))
    times = interleave(tasks, timer, replace(limits, rounds=min(N_FIRST_ROUNDS, limits.rounds)))
    hopeful = _without_hopeless(tasks, times, contenders)
    interleave(hopeful, timer, limits, times)
    scans = {
        name: scan_in_use(cell.towers[name]) for name in tasks if contenders[name].group == OWN
    }
    return {
        "times": {
            name: {**asdict(parts[name]), "ms": [rounded(1e3 * s) for s in times[name].rounds]}
            for name in tasks
        },
        "left_out": left_out,
        "scans": scans,
    }


def _affordable(contender: Contender, cell: Cell, mode: str, timer: Timer) -> Part:
    """Return as much of a slow rival as can be called in the time: its cost is even in both.

    An eighth of the batch is tried, with one layer where all layers cost the same. In ours the
    last layer costs less than the others.
    """
    whole = Part(N_LAYERS, cell.shape.batch)
    if not contender.slow:
        return whole
    least = Part(
        N_LAYERS if contender.group == OWN else 1, max(1, cell.shape.batch // SMALLEST_PART)
    )
    tower = contender.build(cell.size, least.layers)
    tokens_BLD = torch.randn(least.batch, cell.shape.length, cell.size)
    weight_BD = torch.randn(least.batch, cell.size)
    task = {"": _task(mode, tower, tokens_BLD, weight_BD, least.scale(cell))}
    seconds = interleave(task, timer, Limits(1, 0, fewest=1, warm_up=1.0))[""].rounds[0]
    larger = [whole, Part(least.layers, cell.shape.batch), least]
    return next((one for one in larger if seconds / one.scale(cell) <= cell.longest), least)


def _task(mode: str, tower: nn.Module, tokens: Tensor, weight: Tensor, scale: float = 1.0) -> Task:
    if mode == "train":
        return training_task(tower, tokens, weight, scale)
    return inference_task(tower, tokens, scale)


def _without_hopeless(
    tasks: dict[str, Task], times: dict[str, Times], contenders: dict[str, Contender]
) -> dict[str, Task]:
    medians = {
        name: Spread.of(times[name].rounds).median
        for name in tasks
        if contenders[name].group == FT_TRANSFORMER
    }
    worst = HOPELESS * min(medians.values(), default=0.0)
    return {name: task for name, task in tasks.items() if medians.get(name, 0.0) <= worst}


if __name__ == "__main__":
    main()
