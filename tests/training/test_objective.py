"""What a step minimises, in every mode: rows and sequences, with popularity and without."""

import itertools
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ftmamba.data.batches import make_batches
from ftmamba.data.encoded import EncodedData
from ftmamba.recipe import LOSSES, LossRecipe
from ftmamba.training.loop import TrainingLoop
from ftmamba.training.objective import Objective, time_groups

from .toy import training_recipe

MODES = {"rows": "", "sequences": "every"}


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    from . import toy

    folder = tmp_path_factory.mktemp("sequences")
    return {kind: toy.encoded_sequences(folder, with_popularity=kind) for kind in (False, True)}


@pytest.fixture
def made(toy):
    """Return an objective of a loss, and its first batch."""

    def make(data, sequences="", *, batch_size=6, model=None, batch_order="random", **loss):
        recipe = training_recipe(loss=loss, sequences=sequences, batch_order=batch_order)
        objective = Objective(model or toy.model(data), data, recipe, seed=3)
        batches = make_batches(
            data, sequences=sequences, batch_size=batch_size, seed=0, batch_order=batch_order
        )
        return objective, next(iter(batches.epoch(0)))

    return make


@pytest.fixture
def loop_of(toy, tmp_path, accelerator):
    def make(data, accelerator=accelerator, **options):
        recipe = training_recipe(num_epochs=1, **options)
        return TrainingLoop(toy.model(data), data, recipe, accelerator, folder=tmp_path, seed=0)

    return make


def value(objective, batch, step=0):
    return objective(objective.prepare(batch, step))


# For each option of a loss, a value that is none's default.
OTHER = {
    "n_negatives": 3, "negatives": "mixed", "t": 0.25, "log_q": False, "label_smoothing": 0.3,
    "mask_known_positives": True, "mask_history": True, "n_sampled_items": 3,
    "user_weight_exponent": 0.5, "positive_weight": 2.0, "l2": 3.0, "time_buckets": 2,
}  # fmt: skip


def test_every_option_of_a_loss_is_walked():
    assert {"name", *OTHER} == {f.name for f in fields(LossRecipe)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
def test_every_option_changes_the_loss_or_is_refused_by_name(name, mode, sequences, made):
    usual = value(*made(sequences[True], MODES[mode], name=name)).item()
    n_read = 0
    for option, other in OTHER.items():
        loss = {"name": name, option: other}
        if name in LossRecipe.__dataclass_fields__[option].metadata["read_by"]:
            assert value(*made(sequences[True], MODES[mode], **loss)).item() != usual, option
            n_read += 1
        else:
            with pytest.raises(ValueError, match=f"{option} is not read by '{name}'"):
                made(sequences[True], MODES[mode], **loss)
    assert n_read > 1


def test_the_order_of_batches_changes_the_batch_or_is_refused_by_name(sequences, made):
    pairs = [made(sequences[True], name="in_batch", batch_order=o) for o in ("random", "time")]
    assert pairs[0][1].targets.tolist() != pairs[1][1].targets.tolist()
    # A batch that is a stretch of time has one group.
    groups = [objective.prepare(batch, 0).inputs["groups"] for objective, batch in pairs]
    assert [len(one.unique()) for one in groups] == [4, 1]
    with pytest.raises(ValueError, match="batch_order 'time' is for rows"):
        training_recipe(sequences="every", batch_order="time")


def test_what_the_data_do_not_have_is_refused_by_name(data, sequences, made):
    with pytest.raises(ValueError, match="time_buckets 2 is for items with popularity columns"):
        made(sequences[False], name="full_softmax", time_buckets=2)
    with pytest.raises(ValueError, match="mask_history needs a column of kind 'history'"):
        made(data, name="bce", mask_history=True)


class Definition:
    """An objective's loss position by position: every history and every candidate by itself."""

    def __init__(self, objective: Objective, batch):
        self.model, self.data, self.loss = objective.model, objective.data, objective.loss
        self.batch, self.objective = batch, objective

    def items(self, item_ids, time=None):
        popularity = None
        if self.data.popularity_slots:
            times = np.full(len(item_ids), time)
            popularity = torch.from_numpy(self.data.popularity_at(item_ids.numpy(), times))
        return self.model.get_item_embeddings(**self.data.gather_items(item_ids, popularity))

    def query(self, m):
        """Return the user as of position m, whose history is read as of each event's time."""
        batch, window, slot = self.batch, self.batch.windows[m], self.batch.slots[m]
        users = self.data.gather_users(batch.user_ids[window : window + 1])
        ids, times = batch.history_ids[window, :slot], batch.history_times[window, :slot]
        if slot:
            events = [self.items(ids[t : t + 1], int(times[t])) for t in range(slot)]
            users["user_history"] = torch.cat(events)[None]
            users["user_event_features"] = batch.event_features[window, :slot][None]
        return self.model.get_user_embeddings(**users)[0] / self.model.temperature

    def score(self, m, item_ids):
        time = None if self.batch.times is None else int(self.batch.times[m])
        return self.items(item_ids, time) @ self.query(m)

    def excluded(self, m, item_ids):
        """Return which items are no negatives at position m."""
        target = item_ids == self.batch.targets[m]
        window = self.batch.windows[m]
        if self.loss.mask_history:
            seen = self.batch.history_ids[window, : self.batch.slots[m]]
        elif self.loss.mask_known_positives:
            user_ids, items = self.data.training_pairs()
            seen = items[user_ids == self.batch.user_ids[window]]
        else:
            return target
        return target | torch.isin(item_ids, seen)

    def at(self, m):
        """Return the loss of position m."""
        data, loss, target = self.data, self.loss, self.batch.targets[m]
        catalogue = torch.arange(data.n_items)
        if loss.name == "full_softmax":
            scores, masked = self.score(m, catalogue), self.excluded(m, catalogue)
            masked[target] = False
            return F.cross_entropy(scores.masked_fill(masked, -torch.inf)[None], target[None])
        if loss.name == "full_mse":
            items = self.items(catalogue, None if self.batch.times is None else self.batch.times[m])
            query, scores = self.query(m), self.score(m, catalogue)
            count = (data.training_pairs()[0] == self.batch.user_ids[self.batch.windows[m]]).sum()
            length = query.square().sum() + items.square().sum(1).mean()
            own = loss.positive_weight * (1 - scores[target]) ** 2 - scores[target] ** 2
            return own + (scores.square().sum() + loss.l2 * length) / count
        own = self.score(m, target[None])[0]
        if loss.name == "in_batch":
            ids, counts = self.batch.targets.unique(return_counts=True)
            log_q = torch.from_numpy(data.item_counts / data.item_counts.sum()).log()
            others = self.score(m, ids) + counts.log() - log_q[ids] * loss.log_q
            own = own - log_q[target] * loss.log_q
        else:
            ids = self.drawn[m]
            others = self.score(m, ids)
            if loss.log_q and loss.name == "sampled_softmax":
                others = others - self.objective.sampler.log_q[ids] - np.log(len(ids))
        others = others[~self.excluded(m, ids)]
        if loss.name in ("in_batch", "sampled_softmax"):
            return torch.cat([own[None], others]).logsumexp(0) - own
        if loss.name == "mse":
            return ((own - 1) ** 2 + others.square().sum()) / (1 + len(ids))
        return (self.objective.beta * F.softplus(-own) + F.softplus(others).sum()) / (1 + len(ids))

    def mean(self):
        n = len(self.batch.targets)
        if self.objective.sampler is not None:
            rows = self.batch.rows.numpy() if self.objective.own_negatives else np.zeros(1, int)
            self.drawn = self.objective.sampler.draw(rows, self.loss.n_negatives, 0).expand(n, -1)
        return torch.stack([self.at(m) for m in range(n)]).mean()


@pytest.mark.parametrize("mask", [None, "mask_known_positives", "mask_history"])
@pytest.mark.parametrize("with_popularity", [False, True], ids=["timeless", "popularity"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_its_definition_position_by_position(
    name, mode, with_popularity, mask, sequences, made, toy
):
    """With a bucket for every time, every candidate is read as of the position's own time."""
    if mask and mask not in LossRecipe(name).__dict__:
        return
    if mask and name == "full_mse":
        return
    options = {mask: True} if mask else {}
    if with_popularity and name not in ("bce", "mse"):
        options["time_buckets"] = 0
    data = sequences[with_popularity]
    model = toy.model(data).double()
    double = {key: one.double() if one.is_floating_point() else one
              for key, one in data.users.items()}  # fmt: skip
    items = {key: one.double() if one.is_floating_point() else one
             for key, one in data.items.items()}  # fmt: skip
    data = replace(data, users=double, items=items)
    objective, batch = made(data, MODES[mode], batch_size=4, model=model, name=name, **options)
    batch = replace(batch, event_features=batch.event_features.double())
    found = value(objective, batch)
    torch.testing.assert_close(found, Definition(objective, batch).mean(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "loss",
    [
        {"name": "full_softmax"},
        {"name": "full_softmax", "n_sampled_items": 3, "time_buckets": 2},
        {"name": "in_batch", "time_buckets": 3},
        {"name": "sampled_softmax"},
        {"name": "gbce", "time_buckets": 1},
        {"name": "mse"},
    ],
)
def test_no_position_reads_popularity_of_its_own_time_or_later(
    loss, mode, sequences, made, monkeypatch
):
    """An interaction of the item that a position reads lies strictly before the position."""
    asked = {}
    popularity_at = EncodedData.popularity_at

    def spied(data, item_ids, times):
        asked["ids"], asked["times"] = item_ids, times
        return popularity_at(data, item_ids, times)

    monkeypatch.setattr(EncodedData, "popularity_at", spied)
    objective, batch = made(sequences[True], MODES[mode], **loss)
    inputs = objective.prepare(batch, 0).inputs
    times_R = torch.from_numpy(np.asarray(asked["times"]))
    is_event_BT = torch.arange(batch.history_ids.shape[1]) < batch.lengths[:, None]
    assert torch.equal(times_R[inputs["history"]][is_event_BT], batch.history_times[is_event_BT])
    if "candidates" in inputs:
        times_M = times_R[inputs["candidates"]].amax(1)[inputs["groups"]]
        assert (times_M <= batch.times).all()
        n_groups = objective.time_buckets
        assert len(times_M.unique()) <= n_groups
        assert (times_M < batch.times).any() or n_groups >= len(batch.times.unique())
    else:
        assert torch.equal(times_R[inputs["targets"]], batch.times)
        assert (times_R[inputs["negatives"]] == batch.times[:, None]).all()


def test_time_groups_are_of_one_size_and_begin_with_their_earliest():
    times = np.array([5, 1, 9, 9, 2, 7, 3])
    groups, earliest = time_groups(times, 3)
    assert groups.tolist() == [1, 0, 2, 2, 0, 1, 0]
    assert earliest.tolist() == [1, 5, 9]
    for n_groups in (1, 2, 4, 7, 50):
        groups, earliest = time_groups(times, n_groups)
        assert (earliest == [times[groups == g].min() for g in range(len(earliest))]).all()
    assert time_groups(times, 0)[1].tolist() == [1, 2, 3, 5, 7, 9]


def test_distinct_records_once_equals_every_row_by_itself(either_data, made):
    objective, batch = made(either_data, batch_size=40, name="bce")
    assert len(batch.user_ids.unique()) < 40
    inputs = objective.prepare(batch, 0).inputs
    queries_MD, items_RD = objective.embed(inputs)
    users = either_data.gather_users(batch.user_ids)
    torch.testing.assert_close(queries_MD, objective.model.get_user_embeddings(**users))
    popularity = None
    if either_data.popularity_slots:
        times = batch.times.numpy()
        popularity = torch.from_numpy(either_data.popularity_at(batch.targets.numpy(), times))
    items = either_data.gather_items(batch.targets, popularity)
    found = items_RD[inputs["targets"]]
    torch.testing.assert_close(found, objective.model.get_item_embeddings(**items))


@pytest.mark.parametrize("history_start", [False, True])
def test_a_first_event_is_predicted_only_where_there_is_something_to_read(
    history_start, toy, made, tmp_path
):
    data = toy.encoded_sequences(tmp_path, with_profile=False)
    model = toy.model(data, history_start=history_start)
    objective, batch = made(data, "newest", model=model, name="in_batch")
    kept = (batch.slots > 0) | history_start
    assert (batch.slots == 0).any()
    prepared = objective.prepare(batch, 0)
    assert torch.equal(prepared.batch.targets, batch.targets[kept])
    assert len(prepared.inputs["queries"]) == int(kept.sum())
    assert bool(objective(prepared).isfinite())


def test_negatives_are_new_at_every_step(either_data, made):
    for name in ("bce", "sampled_softmax"):
        objective, batch = made(either_data, batch_size=40, name=name)
        assert value(objective, batch, 0) == value(objective, batch, 0)
        assert value(objective, batch, 0) != value(objective, batch, 1)


def test_a_sample_of_all_items_is_the_exact_softmax_and_fewer_estimate_it(data, made):
    exact = value(*made(data, batch_size=4, name="full_softmax"))
    whole = value(*made(data, batch_size=4, name="full_softmax", n_sampled_items=1000))
    torch.testing.assert_close(whole, exact)
    sampled, batch = made(data, batch_size=4, name="full_softmax", n_sampled_items=4)
    inputs = sampled.prepare(batch, 0).inputs
    assert inputs["log_weights"].exp().sum().item() == pytest.approx(data.n_items)
    assert len(inputs["log_weights"]) == len(batch.targets.unique()) + 4
    estimates = torch.stack([value(sampled, batch, step) for step in range(200)])
    assert estimates.std() > 1e-4
    assert estimates.mean().item() == pytest.approx(exact.item(), abs=0.01)


def test_users_weigh_by_how_much_they_took(data, made, monkeypatch):
    objective, batch = made(data, name="full_softmax", user_weight_exponent=0.5)
    pairs = torch.tensor([0] * 4 + [1] + [2] * 9), torch.zeros(14, dtype=torch.int64)
    monkeypatch.setattr(EncodedData, "training_pairs", lambda _: pairs)
    # Weights 1/2, 1 and 1/3 over 14 interactions sum to 2 + 1 + 3.
    wanted = torch.tensor([1 / 2, 1, 1 / 3]) * 14 / 6
    torch.testing.assert_close(objective._user_weights[:3], wanted)
    in_threes = replace(batch, user_ids=torch.arange(6) % 3)
    found = objective.prepare(in_threes, 0).inputs["weights"]
    torch.testing.assert_close(found, wanted[in_threes.user_ids])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "in_batch"}, "learns it with the loss full_softmax, got 'in_batch'"),
        ({"name": "full_softmax", "mask_history": True}, "mask_history leaves seen items out"),
        ({"name": "full_softmax", "mask_known_positives": True}, "mask_known_positives leaves"),
    ],
)
def test_a_loss_that_learns_no_repeats_is_refused(loss, message, sequences, toy, made):
    model = toy.model(sequences[False], repeat_bias=True)
    with pytest.raises(ValueError, match=message):
        made(sequences[False], model=model, **loss)


@pytest.mark.parametrize("mode", MODES)
def test_a_bias_of_repeats_is_added_to_the_scores_of_seen_items(mode, sequences, toy, made):
    data = sequences[False]
    model = toy.model(data, repeat_bias=True)
    torch.nn.init.constant_(model.repeat_bias, -0.7)
    objective, batch = made(data, MODES[mode], model=model, name="full_softmax")
    slow, catalogue, losses = Definition(objective, batch), torch.arange(data.n_items), []
    for m, target in enumerate(batch.targets):
        seen = batch.history_ids[batch.windows[m], : batch.slots[m]]
        bias = -0.7 / model.temperature * torch.isin(catalogue, seen)
        losses.append(F.cross_entropy((slow.score(m, catalogue) + bias)[None], target[None]))
    torch.testing.assert_close(value(objective, batch), torch.stack(losses).mean())


def test_preparing_draws_no_random_numbers_keeps_no_gradient_and_can_be_repeated(sequences, made):
    for name, data in itertools.product(LOSSES, sequences.values()):
        objective, batch = made(data, "newest", name=name)
        before = torch.get_rng_state()
        first, again = (objective.prepare(batch, 3) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        for key, tensor in first.inputs.items():
            assert (tensor.device.type, tensor.requires_grad) == ("cpu", False)
            torch.testing.assert_close(tensor, again.inputs[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("start", [0, 2])
def test_every_batch_is_prepared_in_a_thread_for_the_step_that_takes_it(
    start, either_data, loop_of, monkeypatch
):
    notes = []

    def noting(name, function, step_of):
        def noted(self, *arguments):
            notes.append(
                (name, threading.current_thread().name.split("_0")[0], step_of(*arguments))
            )
            return function(self, *arguments)

        return noted

    prepare, forward = Objective.prepare, Objective.forward
    monkeypatch.setattr(Objective, "prepare", noting("prepare", prepare, lambda _, step: step))
    monkeypatch.setattr(Objective, "forward", noting("step", forward, lambda one: one.step))
    loop = loop_of(either_data, batch_size=16, gradient_accumulation_steps=2)
    loop.progress.step, loop.progress.batch = start, 2 * start
    loop.run(None)
    n_batches = loop.batches.n_batches - 2 * start
    assert n_batches > 2
    expected = [start + number // 2 for number in range(n_batches)]
    for name, thread in (("prepare", "read_ahead"), ("step", "MainThread")):
        assert [note[1:] for note in notes if note[0] == name] == [(thread, s) for s in expected]
    assert not any("read_ahead" in thread.name for thread in threading.enumerate())


def test_a_step_that_fails_ends_the_thread_as_well(data, loop_of, monkeypatch):
    def failing(self, prepared):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Objective, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop_of(data, batch_size=16).run(None)
    assert not any("read_ahead" in thread.name for thread in threading.enumerate())


def test_the_gradient_is_clipped_to_the_norm(data, loop_of, accelerator):
    loop = loop_of(data, batch_size=32, max_grad_norm=0.005)
    prepared = loop.objective.prepare(next(iter(loop.batches.epoch(0))), 0)
    accelerator.backward(loop.wrapped(prepared))
    before = torch.nn.utils.get_total_norm([p.grad for p in loop.parameters]).item()
    assert loop._clip(0.0, prepared) == pytest.approx(before)
    after = torch.nn.utils.get_total_norm([p.grad for p in loop.parameters]).item()
    assert before > 0.01
    assert after == pytest.approx(0.005, rel=1e-3)


@pytest.mark.gpu
def test_a_gpu_trains_on_pinned_inputs(data, toy, tmp_path):
    from accelerate import Accelerator

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recipe = training_recipe(batch_size=16, num_epochs=1)
    loop = TrainingLoop(toy.model(data), data, recipe, Accelerator(), folder=tmp_path, seed=0)
    prepared = next(loop._prepared())
    assert all(tensor.is_pinned() for tensor in prepared.inputs.values())
    assert bool(loop.wrapped(prepared).isfinite())
