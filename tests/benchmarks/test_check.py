"""A wrong tower is found and refused before it is timed."""

import pytest
import torch
from torch import nn

from benchmarks.speed.check import Errors, WrongResultError, check_contender, demand
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


def test_there_are_towers_to_check():
    assert {"mamba", "mamba, sequential", "attention", "ftt 32", "ftt 32 fused"} <= set(CHECKED)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("length", [1, 7, 21])
def test_every_tower_that_is_timed_is_right(name, length):
    demand(name, check_contender(cpu_contenders()[name], 64, Shape(8, length)))


def test_a_right_tower_is_accepted():
    errors = check_contender(contender(""), 8, Shape(4, 5))
    demand("made up", errors)
    assert 0 < errors.value < 1e-6


@pytest.mark.parametrize("fault", ["values", "inference", "gradients", "nan"])
def test_a_wrong_tower_is_refused_by_name(fault):
    errors = check_contender(contender(fault), 8, Shape(4, 5))
    with pytest.raises(WrongResultError, match=r"made up is wrong.*not timed"):
        demand("made up", errors)


def test_the_worst_gradient_is_named():
    errors = check_contender(contender("gradients"), 8, Shape(4, 5))
    assert errors.gradient == pytest.approx(1e-3, rel=1e-2)
    assert errors.worst in {"linear.weight", "linear.bias", "the tokens"}


def test_what_is_not_a_number_is_written_as_none():
    assert Errors(float("nan"), 0.123456, "x").to_dict() == {
        "value": None, "gradient": 0.12, "worst": "x",
    }  # fmt: skip
