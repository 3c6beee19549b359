"""Timing in turns: who runs when, who drops out, and what is made of the seconds."""

import pytest
import torch

from benchmarks.speed.measure import (
    Limits,
    Spread,
    Task,
    inference_task,
    interleave,
    training_task,
)


class Clock:
    """A timer that runs the call and says what each call took."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.called = []

    def task(self, name, **options):
        return Task(lambda: self.called.append(name), **options)

    def __call__(self, call):
        call()
        return self.seconds[self.called[-1]]


ONCE = {"visit": 0.0}


def test_tasks_run_in_turns_and_each_round_begins_with_another():
    clock = Clock({"a": 1.0, "b": 1.0, "c": 1.0})
    interleave({name: clock.task(name) for name in "abc"}, clock, Limits(3, 99, **ONCE))
    warm_up, *rounds = ("".join(clock.called[i : i + 3]) for i in range(0, 12, 3))
    assert warm_up == "abc"
    assert rounds == ["abc", "bca", "cab"]


def test_a_task_that_has_used_its_time_drops_out_after_its_fewest_rounds():
    clock = Clock({"slow": 10.0, "quick": 0.5})
    tasks = {name: clock.task(name) for name in clock.seconds}
    times = interleave(tasks, clock, Limits(8, seconds=3.0, fewest=2, **ONCE))
    assert times["slow"].rounds == [10.0, 10.0]
    assert times["quick"].rounds == [0.5] * 6


def test_a_second_call_goes_on_where_the_first_stopped():
    clock = Clock({"a": 1.0, "b": 1.0})
    tasks = {name: clock.task(name) for name in "ab"}
    times = interleave(tasks, clock, Limits(2, 99, **ONCE))
    interleave({"a": tasks["a"]}, clock, Limits(5, 99, **ONCE), times)
    assert [len(times[name].rounds) for name in "ab"] == [5, 2]
    assert clock.called.count("a") == 1 + 5


def test_a_quick_task_is_called_again_within_a_round_and_its_mean_is_scaled():
    clock = Clock({"a": 0.25})
    times = interleave({"a": clock.task("a", scale=4.0)}, clock, Limits(1, 99, visit=1.0))
    assert len(clock.called) == 1 + 4
    assert times["a"].rounds == [1.0]
    assert times["a"].spent == 1.0


@pytest.mark.parametrize(
    ("values", "spread"),
    [([7.0], Spread(7, 7, 7)), ([4.0, 2.0], Spread(3, 2.5, 3.5)), (range(5), Spread(2, 1, 3))],
)
def test_a_spread_is_the_median_and_the_quartiles(values, spread):
    assert Spread.of(values) == spread


def test_a_training_task_gives_fresh_gradients_of_parameters_and_tokens():
    tower = torch.nn.Linear(3, 2, bias=False)
    tokens, weight = torch.randn(4, 3), torch.randn(4, 2)
    task = training_task(tower, tokens, weight)
    for _ in range(2):
        task.before()
        task.call()
    torch.testing.assert_close(tower.weight.grad, weight.T @ tokens)
    assert tower.training
    assert tokens.grad is None, "the caller's tokens are left alone"


def test_an_inference_task_records_nothing_and_is_in_evaluation_mode():
    seen = []

    class Tower(torch.nn.Module):
        def forward(self, _):
            seen.append((self.training, torch.is_grad_enabled()))

    task = inference_task(Tower(), torch.zeros(1))
    task.before()
    task.call()
    assert seen == [(False, False)]
