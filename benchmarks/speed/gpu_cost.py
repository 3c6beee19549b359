"""What a tower must compute and move, and the most a device was measured to.

FLOPs are of the linear maps, attention and scan. Bytes are counted as if every operator read its
inputs and wrote its outputs once: normalisation, each linear map, convolution, scan with its gate,
attention, residual. What fuses operators moves less, and may pass the ceiling. A backward is twice
a forward.

The letters: D hidden, E inner, F feed-forward, N state, R rank of dt, K kernel, H heads, L tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .measure import Timer
from .targets import N_LAYERS, STATE_SIZE

SSD_HEAD = 32
SSD_CHUNK = 64


@dataclass(frozen=True)
class Cost:
    """FLOPs, and numbers read or written."""

    flops: float
    numbers: float

    def times(self, factor: float) -> "Cost":
        """Return the cost of so many."""
        return Cost(self.flops * factor, self.numbers * factor)

    def plus(self, other: "Cost") -> "Cost":
        """Return the cost of both."""
        return Cost(self.flops + other.flops, self.numbers + other.numbers)


@dataclass(frozen=True)
class Ceiling:
    """What the device was measured to do.

    Attributes:
        bytes_a_second: of a copy, read and written.
        flops_a_second: of a large square matrix product, by type.
    """

    bytes_a_second: float
    flops_a_second: dict[str, float]

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        """Return the least time for a cost: the longer of moving and computing."""
        moving = cost.numbers * dtype.itemsize / self.bytes_a_second
        return max(moving, cost.flops / self.flops_a_second[str(dtype)])


def tower_cost(name: str, size: int, length: int, n_tokens: int, *, train: bool) -> Cost:
    """Return the cost of a tower whose last layer computes the last token alone."""
    layer = _layer_of(name)
    total = layer(size, length, last=False).times(N_LAYERS - 1)
    total = total.plus(layer(size, length, last=True)).times(n_tokens)
    return total.times(3 if train else 1)


def layer_cost(name: str, size: int, length: int, n_tokens: int, *, train: bool) -> Cost:
    """Return the cost of one whole layer."""
    return _layer_of(name)(size, length, last=False).times(n_tokens * (3 if train else 1))


def measure_ceiling(
    device: torch.device, dtypes: tuple[torch.dtype, ...], timer: Timer, *, quick: bool
) -> Ceiling:
    """Measure the copy and the matrix product, each the best of ten."""
    n_numbers, side = (2**20, 128) if quick else (2**28, 8192)
    source = torch.ones(n_numbers, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), timer)
    flops = {}
    for dtype in dtypes:
        square = torch.randn(side, side, device=device).to(dtype)
        flops[str(dtype)] = 2 * side**3 / _best(partial(torch.mm, square, square), timer)
    return Ceiling(2 * source.nbytes / seconds, flops)


def _best(call: Callable[[], object], timer: Timer) -> float:
    call()
    return min(timer(call) for _ in range(10))


def _layer_of(name: str) -> Callable[..., Cost]:
    if name.startswith("ftt") or name == "attention":
        return _transformer_layer
    return _ssd_layer if name == "ssd" else _mamba_layer


def _mamba_layer(D: int, L: int, *, last: bool) -> Cost:  # noqa: ARG001
    E, N, R, K = 2 * D, STATE_SIZE, math.ceil(D / 16), 4
    weights = D * E + E * (R + N) + R * E
    numbers = 2 * D + (D + E) + 2 * E + (E + R + 2 * N) + (R + E) + (2 * E + 2 * N)
    if not last:
        weights += D * E + E * N + E * D
        numbers += E + 2 * E + (E + D) + 3 * D
    return Cost(2 * weights + 2 * K * E + 7 * E * N, numbers)


def _ssd_layer(D: int, L: int, *, last: bool) -> Cost:
    E, N, K = 2 * D, STATE_SIZE, 4
    H, T = E // SSD_HEAD, min(L, SSD_CHUNK)
    weights = D * (E + 2 * N + H)
    numbers = 2 * D + (D + E + 2 * N + H) + 2 * (E + 2 * N) + (E + 2 * N + H)
    scan = 2 * T * (N + E) + (4 * N * E if L > T else 0)
    if not last:
        weights += D * E + E * D
        numbers += E + 3 * E + (E + D) + 3 * D
    return Cost(2 * weights + 2 * K * (E + 2 * N) + scan, numbers)


def _transformer_layer(D: int, L: int, *, last: bool) -> Cost:
    F = int(4 * D / 3)
    if last:
        return Cost(2 * 2 * D * D + 4 * D, 2 * D + 3 * D + 2 * D)
    weights = 4 * D * D + 3 * D * F
    numbers = 2 * D + 4 * D + 4 * D + 2 * D + 3 * D + 2 * D + (D + 2 * F) + 3 * F + (F + D) + 3 * D
    return Cost(2 * weights + 4 * L * D, numbers)
