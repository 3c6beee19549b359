"""A wrong tower is found and refused before it is timed."""

import pytest
import torch
from torch import nn

from benchmarks.speed.check import WrongResultError, check_contender, demand
from benchmarks.speed.contenders import OWN, Contender, cpu_contenders
from benchmarks.speed.targets import Shape

CHECKED = [name for name, one in cpu_contenders().items() if one.checked and name != "ssd"]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, dy):
        # Right in float64, so that the truth is the truth.
        return dy if dy.dtype is torch.float64 else 1.001 * dy


class Tower(nn.Module):
    def __init__(self, fault=""):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.fault = fault

    def forward(self, x):
        y = self.linear(x.mean(1))
        if x.dtype is torch.float64:
            return y
        if self.fault == "values":
            return y * (1 + 1e-4)
        if self.fault == "inference" and not torch.is_grad_enabled():
            return y * (1 + 1e-4)
        if self.fault == "nan":
            return y * float("nan")
        return WrongGradient.apply(y) if self.fault == "gradients" else y


def contender(fault):
    return Contender("made up", "made up", OWN, lambda *_: Tower(fault))


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("length", [1, 7, 21])
def test_every_tower_that_is_timed_is_right(name, length):
    demand(name, check_contender(cpu_contenders()[name], 64, Shape(8, length)))


@pytest.mark.parametrize("fault", ["values", "inference", "gradients", "nan"])
def test_a_wrong_tower_is_refused_by_name(fault):
    errors = check_contender(contender(fault), 8, Shape(4, 5))
    with pytest.raises(WrongResultError, match=r"made up is wrong.*not timed"):
        demand("made up", errors)


def test_the_worst_gradient_is_named():
    errors = check_contender(contender("gradients"), 8, Shape(4, 5))
    assert errors.gradient == pytest.approx(1e-3, rel=1e-2)
    assert errors.worst in {"linear.weight", "linear.bias", "the tokens"}
