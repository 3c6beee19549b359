"""Time the towers of one cell on a device: types, memory that runs out, what cannot run there.

Shapes: B batch, L tokens, D hidden.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .contenders import Contender
from .gpu_cost import Ceiling, layer_cost, tower_cost
from .measure import (
    Call,
    Limits,
    Spread,
    Task,
    Timer,
    Times,
    inference_task,
    interleave,
    training_task,
)
from .results import rounded
from .targets import N_LAYERS, Shape
from .towers_under_test import TokenTower, scan_in_use

FRACTION_OF_SLOW = 16
IN_MEMORY = ("mamba, sequential", "transformers")
"""They keep every state in memory: timed on a part of the batch, and the time multiplied."""
CANNOT_RUN = (ImportError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Place:
    """Where to measure.

    Attributes:
        device: the device.
        timer: the clock there.
        size: width D.
        limits: rounds and seconds of a cell.
    """

    device: torch.device
    timer: Timer
    size: int
    limits: Limits

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Cell:
    """What to measure: towers, or one whole layer of each.

    Attributes:
        dtype: of parameters and tokens.
        mode: `train` or `infer`.
        shape: batch and tokens.
        one_layer: whether one layer at all tokens is measured, in place of a tower.
    """

    dtype: torch.dtype
    mode: str
    shape: Shape
    one_layer: bool


@dataclass
class Measured:
    """Times of one cell, and why others are not there."""

    times: dict[str, Times] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def cuda_timer(call: Call) -> float:
    """Return the seconds between two events around a call, on the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def measure(place: Place, cell: Cell, contenders: Iterable[Contender]) -> Measured:
    """Time contenders in turns; what runs out of memory or cannot run is left out."""
    found = Measured()
    generator = torch.Generator(place.device).manual_seed(0)
    tokens_BLD = torch.randn(
        cell.shape.batch, cell.shape.length, place.size, device=place.device, generator=generator
    ).to(cell.dtype)
    for contender in contenders:
        try:
            prepare(place, cell, contender, tokens_BLD, found)
        except CANNOT_RUN as error:
            found.times.pop(contender.name, None)
            found.left_out[contender.name] = str(error).splitlines()[0]
        if place.on_gpu:
            torch.cuda.empty_cache()
    interleave(found.tasks, place.timer, place.limits, found.times)
    return found


def prepare(
    place: Place, cell: Cell, contender: Contender, tokens_BLD: Tensor, found: Measured
) -> None:
    """Build a contender and run it once, which compiles what is compiled.

    Raises:
        ImportError, RuntimeError, TypeError, ValueError: it cannot run here.
    """
    name, whole = contender.name, cell.shape.batch
    if reason := contender.why_not(cell.mode, cell.shape.length):
        raise ValueError(reason)
    batch = max(1, whole // FRACTION_OF_SLOW) if name in IN_MEMORY else whole
    torch.manual_seed(0)
    tower = contender.build(place.size, N_LAYERS).to(place.device, cell.dtype)
    module = first_layer(tower) if cell.one_layer else tower
    task = make_task(module, cell.mode, tokens_BLD[:batch], whole / batch)
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    interleave({name: task}, place.timer, Limits(0), found.times)
    peak = torch.cuda.max_memory_allocated() / 1e6 if place.on_gpu else 0.0
    found.tasks[name] = task
    found.facts[name] = {"batch": batch, "peak_mb": rounded(peak), "scan": scan_in_use(tower)}


def first_layer(tower: nn.Module) -> nn.Module:
    """Return the first layer of a tower, which gives all tokens.

    Raises:
        TypeError: the tower's layers are not to be had one by one.
    """
    if isinstance(tower, TokenTower):
        layers: object = tower.model.layers
    else:
        layers = getattr(tower, "layers", getattr(tower, "stack", None))
    if not isinstance(layers, nn.ModuleList | nn.Sequential):
        raise TypeError("its layers are not to be had one by one")
    return layers[0]


def make_task(module: nn.Module, mode: str, tokens_BLD: Tensor, scale: float) -> Task:
    """Return the task of a mode."""
    if mode == "infer":
        return inference_task(module, tokens_BLD, scale)
    with torch.no_grad():
        weight = torch.randn_like(module(tokens_BLD))
    return training_task(module, tokens_BLD, weight, scale)


def summarise(place: Place, cell: Cell, found: Measured, ceiling: Ceiling) -> dict[str, Any]:
    """Return a cell as the result file has it."""
    count = layer_cost if cell.one_layer else tower_cost
    length, n_tokens = cell.shape.length, cell.shape.batch * cell.shape.length
    times = {}
    for name in found.tasks:
        cost = count(name, place.size, length, n_tokens, train=cell.mode == "train")
        seconds = found.times[name].rounds
        median = Spread.of(seconds).median
        times[name] = {
            "median_ms": rounded(1e3 * median),
            "ms": [rounded(1e3 * s) for s in seconds],
            "gflop": rounded(cost.flops / 1e9),
            "gbyte": rounded(cost.numbers * cell.dtype.itemsize / 1e9),
            "of_ceiling": rounded(ceiling.seconds(cost, cell.dtype) / median),
            **found.facts[name],
        }
    return {
        "dtype": str(cell.dtype).removeprefix("torch."),
        "mode": cell.mode,
        "batch": cell.shape.batch,
        "length": length,
        "times": times,
        "left_out": found.left_out,
    }
