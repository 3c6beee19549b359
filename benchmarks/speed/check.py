"""Check a tower against float64 before it is timed: a wrong tower is not worth timing.

The truth is a copy of the tower in float64, with the selective scan as its definition reads; the
products of `ssd` are held to their definition by its tests. Values are compared with gradients on
and off, for these may take different kernels.

Shapes: B batch, L tokens, D hidden.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .contenders import OWN, Contender
from .targets import LARGEST_GRADIENT_ERROR, LARGEST_VALUE_ERROR, Shape
from .towers_under_test import TokenTower

N_CHECKED_LAYERS = 2
MOST_CHECKED_TOKENS = 10_000
ZERO = 1e-8
"""A true gradient below this part of the largest is zero, and is held to the largest."""


@dataclass(frozen=True)
class Errors:
    """Relative errors against float64.

    Attributes:
        value: largest difference of the outputs over the largest output.
        gradient: norm of the difference over the norm, of the worst gradient.
        worst: whose gradient that is.
    """

    value: float
    gradient: float
    worst: str

    def to_dict(self) -> dict[str, float | str | None]:
        """Return the fields, rounded; None for what is not a number."""
        rounded = {name: float(f"{getattr(self, name):.2g}") for name in ("value", "gradient")}
        finite = {name: x if math.isfinite(x) else None for name, x in rounded.items()}
        return {**finite, "worst": self.worst}


class WrongResultError(Exception):
    """A tower is further from float64 than it may be."""


def check_contender(
    contender: Contender,
    size: int,
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Errors:
    """Return the errors of a contender of two layers on a few records of the shape's length.

    The truth starts from the parameters and tokens as the type holds them. Rivals are checked on
    1,000 tokens at most.
    """
    tower = contender.build(size, N_CHECKED_LAYERS)
    disturb(tower)
    tower.to(device=device, dtype=dtype)
    length = shape.length if contender.group == OWN else min(shape.length, 1000)
    batch = max(1, min(shape.batch, 3, MOST_CHECKED_TOKENS // length))
    generator = torch.Generator().manual_seed(1)
    tokens_BLD = torch.randn(batch, length, size, generator=generator).to(device, dtype)
    weight_BD = torch.randn(batch, size, generator=generator).to(device, dtype)
    truth = true_copy(tower)
    value_BD, gradients = _run(truth, tokens_BLD.double(), weight_BD.double())
    got_BD, got_gradients = _run(tower, tokens_BLD, weight_BD)
    with torch.no_grad():
        inferred_BD = tower.eval()(tokens_BLD)
    value_error = max(_value_error(one, value_BD) for one in (got_BD, inferred_BD))
    worst, gradient_error = _worst(got_gradients, gradients)
    return Errors(value_error, gradient_error, worst)


def demand(
    name: str,
    errors: Errors,
    *,
    value: float = LARGEST_VALUE_ERROR,
    gradient: float = LARGEST_GRADIENT_ERROR,
) -> None:
    """Refuse a wrong tower.

    Raises:
        WrongResultError: an error is above what is allowed, or not a number.
    """
    if not (errors.value <= value and errors.gradient <= gradient):
        raise WrongResultError(
            f"{name} is wrong: relative error of the outputs {errors.value:.1e} (allowed "
            f"{value:.0e}), of the gradient of {errors.worst} {errors.gradient:.1e} (allowed "
            f"{gradient:.0e}); it is not timed. Run the tests of its scan"
        )


@torch.no_grad()
def disturb(tower: nn.Module) -> None:
    """Move every parameter a little, so that none is at a value that hides an error."""
    generator = torch.Generator().manual_seed(0)
    for parameter in tower.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(0.1 * noise * parameter.abs().mean())


def true_copy(tower: nn.Module) -> nn.Module:
    """Return the tower in float64, its scan the definition."""
    truth = copy.deepcopy(tower).double()
    if isinstance(truth, TokenTower):
        scans = truth.model.scan_implementation != "none"
        truth.model.set_scan("reference" if scans else "sequential")
    return truth


def _run(
    tower: nn.Module, tokens_BLD: Tensor, weight_BD: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    tokens_BLD = tokens_BLD.clone().requires_grad_()
    value_BD = tower.train()(tokens_BLD)
    (value_BD * weight_BD).sum().backward()
    leaves = {"the tokens": tokens_BLD, **dict(tower.named_parameters())}
    gradients = {name: leaf.grad.double() for name, leaf in leaves.items() if leaf.grad is not None}
    return value_BD.detach(), gradients


def _value_error(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).abs().max() / truth.abs().max())


def _worst(got: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[str, float]:
    assert got.keys() == truth.keys(), "the copy has other gradients than the tower"
    norms = {name: float(one.norm()) for name, one in truth.items()}
    largest = max(norms.values())
    errors = {
        name: float((got[name] - one).norm())
        / (norms[name] if norms[name] > ZERO * largest else largest)
        for name, one in truth.items()
    }
    # A NaN is the worst of all.
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return name, errors[name]
