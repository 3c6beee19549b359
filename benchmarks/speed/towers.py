"""Towers against their rivals, at every shape, width and number of threads.

    python -m benchmarks.speed.towers                 # all cells, about half an hour
    python -m benchmarks.speed.towers --quick         # three shapes, a few rounds

Each cell runs in a process of its own (`tower_cell.py`). The result file is written after each, so
that nothing is lost, and the table of the targets is printed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .contenders import cpu_contenders
from .figures import verdicts
from .results import ROOT, environment, read_result, write_result
from .tables import plain_verdicts
from .targets import SHAPES, SIZES, TARGET_SIZE, TARGET_THREADS, THREADS, Shape

QUICK_SHAPES = (Shape(256, 11), Shape(256, 41), Shape(32, 200))
QUICK_LENGTH = 21
PLAIN_TORCH = ("mamba, sequential",)
"""In a quick run they, and the slow rivals, are timed up to so many tokens."""
ONLY_AT_TARGETS = ("mamba, sequential", "ftt 8 heads", "deeptab")
"""Far behind wherever they were timed: measured at d 64 on one thread alone."""
LONGEST_CELL = 900


@dataclass(frozen=True)
class Pace:
    """How long a cell may take.

    Attributes:
        rounds: of a tower, at most.
        seconds: of a tower in a mode, unless its fewest rounds take longer.
        longest: of a call of a slow rival.
    """

    rounds: int
    seconds: float
    longest: float


QUICK = Pace(5, 0.5, 4.0)
AT_TARGETS = Pace(20, 6.0, 15.0)
ELSEWHERE = Pace(20, 2.5, 2.0)


@dataclass(frozen=True)
class Job:
    """One cell to run."""

    shape: Shape
    size: int
    threads: int
    pace: Pace
    only: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The process of the cell."""
        options = {
            "batch": self.shape.batch,
            "length": self.shape.length,
            "size": self.size,
            "threads": self.threads,
            **asdict(self.pace),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        only = ["--only", *self.only] if self.only else []
        return [sys.executable, "-m", "benchmarks.speed.tower_cell", *words, *only]


def main() -> None:
    """Run the cells, write the result and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs/performance/towers.json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument(
        "--lengths", type=int, nargs="*", help="of the shapes to run; all if absent"
    )
    parser.add_argument("--go_on", action="store_true", help="keep the cells the file has already")
    options = parser.parse_args()
    jobs = list(quick_jobs() if options.quick else full_jobs(options.sizes, options.threads))
    if options.lengths:
        jobs = [job for job in jobs if job.shape.length in options.lengths]
    result = (read_result(options.output) if options.go_on else None) or {}
    result = {
        "benchmark": "towers",
        "quick": options.quick,
        "environment": environment(),
        "checks": result.get("checks", []),
        "cells": result.get("cells", []),
        "failed": [],
    }
    for number, job in enumerate(jobs, 1):
        started = time.perf_counter()
        run_job(job, result)
        write_result(options.output, result)
        seconds = time.perf_counter() - started
        place = f"{job.shape} d {job.size}, threads {job.threads}"
        print(f"{number}/{len(jobs)} {place}: {seconds:.0f} s", flush=True)
    print(plain_verdicts(verdicts(result["cells"])))
    wrong = sorted({name for check in result["checks"] for name in check["refused"]})
    if result["failed"] or wrong:
        sys.exit(f"failed cells: {len(result['failed'])}; wrong towers: {wrong or 'none'}")


def full_jobs(sizes: list[int], threads: list[int]) -> Iterator[Job]:
    """Return every cell, the ones with targets first."""
    places = [(size, count) for size in sizes for count in threads]
    for place in sorted(places, key=lambda place: place != (TARGET_SIZE, TARGET_THREADS)):
        at_targets = place == (TARGET_SIZE, TARGET_THREADS)
        left_out = () if at_targets else ONLY_AT_TARGETS
        names = tuple(name for name in cpu_contenders() if name not in left_out)
        for shape in SHAPES:
            yield Job(shape, *place, AT_TARGETS if at_targets else ELSEWHERE, names)


def quick_jobs() -> Iterator[Job]:
    """Return three cells with a few rounds."""
    for shape in QUICK_SHAPES:
        short = shape.length <= QUICK_LENGTH
        names = tuple(
            name
            for name, one in cpu_contenders().items()
            if short or not (one.slow or name in PLAIN_TORCH)
        )
        yield Job(shape, TARGET_SIZE, TARGET_THREADS, QUICK, names)


def run_job(job: Job, result: dict[str, Any]) -> None:
    """Run a cell and put what it prints into the result."""
    count = str(job.threads)
    environ = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    try:
        done = subprocess.run(
            job.command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=False,
            timeout=LONGEST_CELL,
        )  # fmt: skip
        lines, problem = done.stdout, f"exit code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        lines = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        problem = f"took longer than {LONGEST_CELL} s"
    for line in lines.splitlines():
        entry = json.loads(line)
        place = "cells" if "mode" in entry else "checks"
        result[place] = [one for one in result[place] if not same_place(one, entry)] + [entry]
    if problem:
        result["failed"].append({"cell": job.command[3:], "problem": problem})


def same_place(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two entries are of the same cell."""
    keys = ("threads", "size", "batch", "length", "mode")
    return all(one.get(key) == other.get(key) for key in keys)


if __name__ == "__main__":
    main()
