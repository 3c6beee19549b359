"""Towers on a GPU: correctness first, then times by CUDA events, and how near the ceiling.

    python -m benchmarks.gpu                         # under eight minutes, into docs/performance/
    python -m benchmarks.gpu --device cpu --quick    # the same code on a CPU, tiny, for a try

Needs torch, triton, transformers and this repository; run it from the repository's root, nothing
need be installed. mamba-ssm is measured where it imports. The result is written after each cell.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.check import WrongResultError, check_contender, demand
from benchmarks.speed.contenders import OWN, Contender, gpu_contenders
from benchmarks.speed.gpu_cell import CANNOT_RUN, Cell, Place, cuda_timer, measure, summarise
from benchmarks.speed.gpu_cost import measure_ceiling
from benchmarks.speed.measure import Limits, wall_timer
from benchmarks.speed.results import ROOT, environment, write_result
from benchmarks.speed.targets import GPU_SHAPE, MODES, Shape

LENGTHS = (11, 21, 41, 200, 1000, 10_000)
ODD_LENGTH = 333
"""Checked too: no multiple of any block."""
DTYPES = (torch.bfloat16, torch.float32)
SIZE = 192
TOLERANCES = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (5e-2, 1e-1)}
"""Relative errors against float64 that are allowed: of outputs, of gradients."""
RIVALS_GRADIENT_BFLOAT16 = 1.0
"""torch's attention adds up its gradients in bfloat16: far off, but not ours to refuse."""

Trusted = dict[torch.dtype, list[Contender]]


def main() -> None:
    """Measure, print a line a cell and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny, a few seconds")
    parser.add_argument("--tokens", type=int, default=GPU_SHAPE.batch * GPU_SHAPE.length)
    parser.add_argument("--minutes", type=float, default=7.0, help="then no further cell begins")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here; --device cpu --quick tries the code on a CPU")
    folder = "runs/performance" if options.quick else "docs/performance"
    output = options.output or ROOT / folder / "gpu.json"
    place = place_of(options.device, quick=options.quick)
    lengths = (11, 41) if options.quick else LENGTHS
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "quick": options.quick,
        "environment": environment(),
        "device": options.device,
        "size": place.size,
    }
    ceiling = measure_ceiling(place.device, DTYPES, place.timer, quick=options.quick)
    result.update(ceiling=asdict(ceiling), checks=[], refused={}, layers=[], cells=[])
    trusted = check_all(place, (*lengths, ODD_LENGTH), result)
    write_result(output, result)
    for cell in cells(lengths, 64 if options.quick else options.tokens):
        if time.monotonic() > deadline:
            sys.exit(f"out of time; the cells before this one are in {output}")
        entry = summarise(place, cell, measure(place, cell, trusted[cell.dtype]), ceiling)
        result["layers" if cell.one_layer else "cells"].append(entry)
        write_result(output, result)
        medians = {name: one["median_ms"] for name, one in entry["times"].items()}
        print(f"{entry['dtype']} {cell.mode} {cell.shape}: {medians}", flush=True)


def place_of(device: str, *, quick: bool) -> Place:
    """Return where to measure, and how long a cell may take."""
    return Place(
        device=torch.device(device),
        timer=cuda_timer if device.startswith("cuda") else wall_timer,
        size=64 if quick else SIZE,
        limits=Limits(2, 0.0, visit=0.0) if quick else Limits(20, 0.6, fewest=3),
    )


def cells(lengths: tuple[int, ...], n_tokens: int) -> Iterator[Cell]:
    """Return the layers at the target's length, then the towers at every length."""
    first = Shape(max(1, n_tokens // GPU_SHAPE.length), GPU_SHAPE.length)
    for dtype in DTYPES:
        for mode in MODES:
            yield Cell(dtype, mode, first, one_layer=True)
    for dtype in DTYPES:
        for length in lengths:
            for mode in MODES:
                yield Cell(dtype, mode, Shape(max(1, n_tokens // length), length), one_layer=False)


def check_all(place: Place, lengths: tuple[int, ...], result: dict[str, Any]) -> Trusted:
    """Compare every tower of ours with float64; return those that may be timed, by type."""
    trusted: Trusted = {dtype: [] for dtype in DTYPES}
    for dtype in DTYPES:
        for contender in gpu_contenders().values():
            reason = ""
            for length in lengths if contender.checked else ():
                reason = reason or check_one(place, contender, dtype, length, result)
            if reason:
                print(reason, file=sys.stderr)
                result["refused"][f"{contender.name}, {dtype}"] = reason
            else:
                trusted[dtype].append(contender)
    return trusted


def check_one(
    place: Place, contender: Contender, dtype: torch.dtype, length: int, result: dict[str, Any]
) -> str:
    """Record the errors of a contender; return why it may not be timed, or nothing."""
    value, gradient = TOLERANCES[dtype]
    if dtype is torch.bfloat16 and contender.group != OWN:
        gradient = RIVALS_GRADIENT_BFLOAT16
    shape = Shape(3, length)
    try:
        errors = check_contender(
            contender, place.size, shape, device=str(place.device), dtype=dtype
        )
        entry = {"name": contender.name, "dtype": str(dtype), "length": length}
        result["checks"].append({**entry, **errors.to_dict()})
        demand(contender.name, errors, value=value, gradient=gradient)
    except WrongResultError as error:
        return str(error)
    except CANNOT_RUN as error:
        return f"{contender.name} cannot run: {error}"
    return ""


if __name__ == "__main__":
    main()
