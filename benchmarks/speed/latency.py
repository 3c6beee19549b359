"""Milliseconds of one record through a tower, and elements a second of the scan alone.

python -m benchmarks.speed.latency --output latency.json
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ftmamba.kernels.attach import missing
from ftmamba.kernels.scan import cpu_scan
from modeling_ftmamba.mixers import selective_scan

from .contenders import cpu_contenders
from .measure import Limits, Spread, Task, Timer, inference_task, interleave, use_threads
from .results import ROOT, environment, rounded, write_result
from .scaling import wrong
from .targets import (
    LATENCY_SHAPE,
    N_LAYERS,
    SCAN_SHAPES,
    STATE_SIZE,
    TARGET_SIZE,
    Shape,
)

SCANS = {"cpu": cpu_scan, "sequential": lambda *tensors: selective_scan(*tensors)[0]}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs/performance/latency.json")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    timer = use_threads(1)
    limits = Limits(5, 2.0) if options.quick else Limits(40, 10.0)
    result: dict[str, Any] = {
        "benchmark": "latency",
        "quick": options.quick,
        "environment": environment(),
        "size": TARGET_SIZE,
        "batch": LATENCY_SHAPE.batch,
        "length": LATENCY_SHAPE.length,
        "ms": {},
        "scans": [],
        "left_out": {},
    }
    result["ms"] = latencies(timer, limits, result["left_out"])
    write_result(options.output, result)
    for shape in SCAN_SHAPES[-1:] if options.quick else SCAN_SHAPES:
        result["scans"] += scan_rates(shape, timer, limits, result["left_out"])
        write_result(options.output, result)
    for name, found in result["ms"].items():
        print(f"{name}: {found['median']} ms")
    for found in result["scans"]:
        print(f"{found['name']} {found['part']} ({found['batch']}, {found['length']}): "
              f"{found['gelem']} Gelem/s")  # fmt: skip


def latencies(timer: Timer, limits: Limits, left_out: dict[str, str]) -> dict[str, Any]:
    """Return milliseconds of one record through each tower."""
    tasks = {}
    tokens_BLD = torch.randn(LATENCY_SHAPE.batch, LATENCY_SHAPE.length, TARGET_SIZE)
    for name, contender in cpu_contenders().items():
        problem = wrong(contender, [LATENCY_SHAPE.length])
        if problem:
            left_out[name] = problem
        else:
            tasks[name] = inference_task(contender.build(TARGET_SIZE, N_LAYERS), tokens_BLD)
    times = interleave(tasks, timer, limits)
    return {name: _summary([1e3 * s for s in found.rounds]) for name, found in times.items()}


def scan_rates(
    shape: Shape, timer: Timer, limits: Limits, left_out: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the speed of each scan alone: without its convolution, gate and linear maps."""
    tasks: dict[tuple[str, str], Task] = {}
    for name in SCANS:
        if name == "cpu" and (reason := missing("cpu")):
            left_out[f"scan {name}"] = reason
        else:
            tasks.update(_scan_tasks(name, shape))
    n_elements = shape.batch * shape.length * 2 * TARGET_SIZE * STATE_SIZE
    times = interleave(tasks, timer, limits)
    return [
        {
            "name": name,
            "part": part,
            "batch": shape.batch,
            "length": shape.length,
            "gelem": rounded(n_elements / 1e9 / Spread.of(times[name, part].rounds).median),
            **_summary([1e3 * s for s in times[name, part].rounds]),
        }
        for name, part in tasks
    ]


def _scan_tasks(name: str, shape: Shape) -> dict[tuple[str, str], Task]:
    inputs = _scan_inputs(shape)
    scan = SCANS[name]
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs: list[torch.Tensor] = []
    dy_BLE = torch.randn_like(inputs[0])

    @torch.no_grad()
    def forward() -> None:
        scan(*inputs)

    def record() -> None:
        outputs[:] = [scan(*leaves)]

    def backward() -> None:
        torch.autograd.grad(outputs, leaves, dy_BLE)

    return {
        (name, "forward"): Task(forward),
        (name, "backward"): Task(backward, before=record),
    }


def _scan_inputs(shape: Shape) -> tuple[torch.Tensor, ...]:
    """Return u, dt, A, B and C as a layer at its initialisation has them."""
    place, channels = (shape.batch, shape.length), 2 * TARGET_SIZE
    u_BLE = torch.randn(*place, channels)
    dt_BLE = F.softplus(torch.randn(*place, channels) - 4)
    A_EN = -torch.arange(1.0, STATE_SIZE + 1).repeat(channels, 1)
    B_BLN, C_BLN = (torch.randn(*place, STATE_SIZE) for _ in range(2))
    return u_BLE, dt_BLE, A_EN, B_BLN, C_BLN


def _summary(values: list[float]) -> dict[str, Any]:
    spread = Spread.of(values)
    quartiles = [rounded(spread.low), rounded(spread.high)]
    return {"median": rounded(spread.median), "quartiles": quartiles, "rounds": len(values)}


if __name__ == "__main__":
    main()
