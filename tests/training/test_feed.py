"""What the steps are fed: prepared in another thread, in order, each for its own step."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch

from ftmamba.training import feed as feed_module
from ftmamba.training.feed import Prepared, feed
from ftmamba.training.loop import TrainingLoop

from .toy import training_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert "read_ahead" not in [thread.name for thread in threading.enumerate()]


@dataclass
class Noting:
    """An objective that prepares as another does, and notes in which thread and for what step."""

    inner: object
    notes: list

    def prepare(self, batch, step):
        self.notes.append(("prepare", threading.current_thread().name, step))
        return self.inner.prepare(batch, step)

    def __call__(self, prepared):
        self.notes.append(("step", threading.current_thread().name, prepared.step))
        return self.inner(prepared)


class Doubling:
    """Its inputs are twice the batch."""

    def prepare(self, batch, step):
        if "poison" in batch:
            raise LookupError("row 7 is gone")
        return Prepared(batch, step, {"x": batch["x"] * 2})


def numbered(n):
    return [({"x": torch.tensor([number])}, 10 + number) for number in range(n)]


def test_batches_keep_their_order_and_their_step():
    with feed(Doubling(), numbered(9), CPU) as prepared:
        found = [(p.batch["x"].item(), p.inputs["x"].item(), p.step) for p in prepared]
    assert found == [(number, 2 * number, 10 + number) for number in range(9)]


def test_the_inputs_are_pinned_for_a_gpu_in_the_thread_and_the_batch_is_not(monkeypatch):
    asked = []

    def pin(tensors, device):
        asked.append((threading.current_thread().name, device))
        return {name: tensor + 100 for name, tensor in tensors.items()}

    monkeypatch.setattr(feed_module, "pinned", pin)
    with feed(Doubling(), numbered(3), GPU) as prepared:
        found = [(p.batch["x"].item(), p.inputs["x"].item()) for p in prepared]
    assert found == [(0, 100), (1, 102), (2, 104)]
    assert asked == [("read_ahead", GPU)] * 3


def test_an_error_while_preparing_stops_the_steps_at_its_batch():
    batches = [*numbered(2), ({"poison": torch.zeros(1)}, 12)]
    taken = []
    with pytest.raises(LookupError, match="row 7") as raised, feed(Doubling(), batches, CPU) as fed:
        taken.extend(fed)
    assert len(taken) == 2
    assert raised.value.__notes__ == ["raised in the thread that reads ahead, by item 2"]


@pytest.mark.parametrize("loss", ["in_batch", "full_softmax", "full_mse", "bce"])
@pytest.mark.parametrize("start", [0, 2])
def test_every_batch_is_prepared_ahead_for_the_step_that_takes_it(
    loss, start, either_data, toy, accelerator, tmp_path, monkeypatch
):
    recipe = training_recipe(loss=loss, batch_size=16, num_epochs=1, gradient_accumulation_steps=2)
    model = toy.model(either_data)
    loop = TrainingLoop(model, either_data, recipe, accelerator, folder=tmp_path, seed=0)
    loop.progress.step, loop.progress.batch = start, 2 * start
    notes = []
    loop.objective = Noting(loop.objective, notes)
    loop.run(None)
    loop.release()
    n_batches = loop.batches.n_batches - 2 * start
    assert n_batches > 2
    expected = [start + number // 2 for number in range(n_batches)]
    for name, thread in (("prepare", "read_ahead"), ("step", "MainThread")):
        assert [note[1:] for note in notes if note[0] == name] == [(thread, s) for s in expected]


def test_preparing_draws_no_random_numbers_and_keeps_no_gradient(
    either_data, toy, accelerator, tmp_path
):
    for loss in ("in_batch", "full_softmax", "full_mse", "bce"):
        recipe = training_recipe(loss=loss, batch_size=16, mask_known_positives=True)
        model = toy.model(either_data)
        loop = TrainingLoop(model, either_data, recipe, accelerator, folder=tmp_path, seed=0)
        before = torch.get_rng_state()
        prepared = loop.objective.prepare(next(loop.batches.epoch(0)), 3)
        assert torch.equal(torch.get_rng_state(), before)
        assert len(prepared.inputs) >= 3
        for tensor in prepared.inputs.values():
            assert (tensor.device, tensor.requires_grad) == (CPU, False)
        loop.release()


def test_a_step_that_fails_ends_the_thread_as_well(data, toy, accelerator, tmp_path):
    recipe = training_recipe(batch_size=16, num_epochs=1)
    loop = TrainingLoop(toy.model(data), data, recipe, accelerator, folder=tmp_path, seed=0)
    inner = loop.objective

    class Failing(Noting):
        def __call__(self, prepared):
            if prepared.step == 1:
                raise RuntimeError("out of memory")
            return super().__call__(prepared)

    loop.objective = Failing(inner, [])
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run(None)
    loop.release()


def test_what_is_prepared_can_be_prepared_again(data, toy, accelerator, tmp_path):
    """The loss is a function of batch and step: nothing is used up by preparing."""
    for loss in ("in_batch", "full_softmax", "bce"):
        recipe = training_recipe(loss=loss, batch_size=16)
        loop = TrainingLoop(toy.model(data), data, recipe, accelerator, folder=tmp_path, seed=0)
        batch = next(loop.batches.epoch(0))
        first = loop.objective.prepare(batch, 5)
        again = replace(first, inputs=loop.objective.prepare(batch, 5).inputs)
        assert torch.equal(loop.objective(first), loop.objective(again))
        loop.release()


@pytest.mark.gpu
def test_a_gpu_trains_on_pinned_inputs(data, toy, tmp_path):
    from accelerate import Accelerator

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recipe = training_recipe(batch_size=16, num_epochs=1)
    model = toy.model(data)
    loop = TrainingLoop(model, data, recipe, Accelerator(), folder=tmp_path, seed=0)
    batches = ((batch, 0) for batch in loop.batches.epoch(0))
    with feed(loop.objective, batches, loop.accelerator.device) as fed:
        prepared = next(fed)
        assert all(tensor.is_pinned() for tensor in prepared.inputs.values())
        assert bool(loop.objective(prepared).isfinite())
    loop.release()
