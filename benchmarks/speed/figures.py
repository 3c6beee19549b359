"""From the times in the result files to ratios and verdicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .measure import Spread
from .targets import (
    BEST_FT_TRANSFORMER,
    RATIO_TARGETS,
    SHAPES,
    TARGET_SIZE,
    TARGET_THREADS,
    RatioTarget,
    Shape,
)

OURS = "mamba"
FT_PREFIX = "ftt"
ATTENTION = "attention"
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A measured ratio beside its target.

    Attributes:
        ratio: median and quartiles over the rounds that both ran; None where not measured.
        at_least: the target; None where there is none.
        rival: which contender it was.
        why_not: why there is no ratio.
    """

    ratio: Spread | None
    at_least: float | None
    rival: str
    why_not: str = ""

    @property
    def passes(self) -> bool | None:
        """Whether the median reaches the target; None where one of them is missing."""
        if self.ratio is None or self.at_least is None:
            return None
        return self.ratio.median >= self.at_least


def median_ms(cell: Cell, name: str) -> float | None:
    """Return the median milliseconds of a contender, if it was timed."""
    times = cell["times"].get(name)
    return Spread.of(times["ms"]).median if times else None


def is_ft_transformer(name: str) -> bool:
    """Say whether a contender is a variant of the FT-Transformer."""
    return name.startswith(FT_PREFIX) or name == ATTENTION


def best_ft_transformer(cell: Cell) -> str | None:
    """Name the fastest variant of the FT-Transformer in a cell, our own attention included."""
    medians = {
        name: Spread.of(times["ms"]).median
        for name, times in cell["times"].items()
        if is_ft_transformer(name)
    }
    return min(medians, key=lambda name: medians[name], default=None)


def ratio(cell: Cell, rival: str, ours: str = OURS) -> Spread | None:
    """Return how many times faster ours is, over the rounds that both ran."""
    slow, fast = cell["times"].get(rival), cell["times"].get(ours)
    if not slow or not fast:
        return None
    pairs = zip(slow["ms"], fast["ms"], strict=False)
    return Spread.of(above / below for above, below in pairs)


def verdict(cell: Cell | None, target: RatioTarget, at_least: float | None) -> Verdict:
    """Compare a cell with its target."""
    if cell is None:
        return Verdict(None, at_least, target.rival, "not measured")
    found = best_ft_transformer(cell) if target.rival == BEST_FT_TRANSFORMER else target.rival
    name = found or target.rival
    why_not = cell["left_out"].get(OURS) or cell["left_out"].get(name) or "not measured"
    return Verdict(ratio(cell, name), at_least, name, why_not)


def verdicts(
    cells: Iterable[Cell], size: int = TARGET_SIZE, threads: int = TARGET_THREADS
) -> list[tuple[RatioTarget, list[Verdict]]]:
    """Return a row a target and a verdict a shape; only d 64 on one thread has targets."""
    known, has_targets = list(cells), (size, threads) == (TARGET_SIZE, TARGET_THREADS)
    rows = []
    for target in RATIO_TARGETS:
        row = []
        for shape, at_least in zip(SHAPES, target.at_least, strict=True):
            cell = find(known, shape, target.mode, size, threads)
            row.append(verdict(cell, target, at_least if has_targets else None))
        rows.append((target, row))
    return rows


def find(
    cells: Iterable[Cell],
    shape: Shape,
    mode: str,
    size: int = TARGET_SIZE,
    threads: int = TARGET_THREADS,
) -> Cell | None:
    """Return a cell, or None where it was not measured."""
    wanted = (shape.batch, shape.length, mode, size, threads)
    keys = ("batch", "length", "mode", "size", "threads")
    return next((cell for cell in cells if tuple(cell[key] for key in keys) == wanted), None)
