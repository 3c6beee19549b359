"""Time several tasks in turns, so that what disturbs one disturbs all, and pair them by turn.

On one thread the clock is the process's CPU time, with the process pinned to one core: what other
processes do does not count, and what a task would do on further threads does. On several threads
it is the wall clock. Garbage collection is off while a task runs, and its inputs exist before.
"""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
Timer = Callable[[Call], float]
"""Runs a call and returns its seconds."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Task:
    """Something to time.

    Attributes:
        call: what is timed.
        before: what is done before every call and not timed.
        scale: times this, a call's seconds are the task's (4 where one layer of 4 is run).
    """

    call: Call
    before: Call = nothing
    scale: float = 1.0


@dataclass(frozen=True)
class Limits:
    """How long to go on.

    Attributes:
        rounds: at most so many rounds.
        seconds: a task that has used so much time drops out,
        fewest: but not before it has run so many rounds.
        visit: a round calls a quick task again until it has used so many seconds, and takes the
            mean.
        warm_up: a first call that takes longer is not thrown away but is the first round.
    """

    rounds: int = 20
    seconds: float = 10.0
    fewest: int = 2
    visit: float = 0.02
    warm_up: float = math.inf


@dataclass
class Times:
    """Seconds of a task, one entry a round."""

    rounds: list[float] = field(default_factory=list)
    spent: float = 0.0

    def add(self, seconds: list[float], scale: float) -> None:
        """Take the mean of some calls as a round."""
        self.rounds.append(scale * statistics.fmean(seconds))
        self.spent += sum(seconds)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarise one value or more."""
        given = list(values)
        if len(given) == 1:
            return cls(given[0], given[0], given[0])
        low, median, high = statistics.quantiles(given, n=4, method="inclusive")
        return cls(median, low, high)


def cpu_timer(call: Call) -> float:
    """Return the CPU seconds that all threads of this process spend on a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def wall_timer(call: Call) -> float:
    """Return the seconds that pass during a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def use_threads(n_threads: int) -> Timer:
    """Hold this process to that many threads and return the clock for it."""
    torch.set_num_threads(n_threads)
    if n_threads > 1:
        return wall_timer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return cpu_timer


def interleave(
    tasks: Mapping[Key, Task],
    timer: Timer,
    limits: Limits,
    times: dict[Key, Times] | None = None,
) -> dict[Key, Times]:
    """Run the tasks in turns until each has its rounds or has used its time.

    Each round begins with another task, so that none always follows the same one. Round i of two
    tasks is the same round: compare them by it. A task that drops out never returns.

    Args:
        tasks: by name; each is run once, untimed, if `times` does not know it.
        timer: the clock.
        limits: when to stop.
        times: of an earlier call, to go on from.
    """
    times = {} if times is None else times
    for name, task in tasks.items():
        if name not in times:
            times[name] = Times()
            seconds = _timed(task, timer)
            if seconds > limits.warm_up:
                times[name].add([seconds], task.scale)
    n_done = min((len(times[name].rounds) for name in tasks), default=0)
    for turn in range(n_done, limits.rounds):
        names = [name for name in tasks if len(times[name].rounds) == turn]
        names = [name for name in names if not _used_up(times[name], limits)]
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
            _visit(tasks[name], timer, times[name], limits)
    return times


def training_task(tower: nn.Module, inputs: Tensor, weight: Tensor, scale: float = 1.0) -> Task:
    """Return the task of one forward and backward, to the parameters and the input."""
    inputs = inputs.detach().clone().requires_grad_()
    leaves = [inputs, *tower.parameters()]

    def prepare() -> None:
        tower.train()
        for leaf in leaves:
            leaf.grad = None

    return Task(lambda: (tower(inputs) * weight).sum().backward(), before=prepare, scale=scale)


def inference_task(tower: nn.Module, inputs: Tensor, scale: float = 1.0) -> Task:
    """Return the task of one forward without gradients."""
    inputs = inputs.detach()

    @torch.no_grad()
    def infer() -> None:
        tower(inputs)

    return Task(infer, before=tower.eval, scale=scale)


def _visit(task: Task, timer: Timer, times: Times, limits: Limits) -> None:
    seconds = [_timed(task, timer)]
    while sum(seconds) < limits.visit:
        seconds.append(_timed(task, timer))
    times.add(seconds, task.scale)


def _timed(task: Task, timer: Timer) -> float:
    task.before()
    gc.disable()
    try:
        return timer(task.call)
    finally:
        gc.enable()


def _used_up(times: Times, limits: Limits) -> bool:
    return len(times.rounds) >= limits.fewest and times.spent >= limits.seconds
