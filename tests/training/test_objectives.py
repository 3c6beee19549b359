"""What each objective feeds its loss."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ftmamba.data.arrow_files import write_arrays
from ftmamba.data.batches import InteractionBatches
from ftmamba.losses import KnownPositives, bce_loss
from ftmamba.training import fit
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.loop import TrainingLoop
from ftmamba.training.objectives import (
    CatalogueEmbedder,
    FullSoftmaxObjective,
    PairObjective,
    known_positives,
    log_sampling_probability,
)

from .toy import loss_of, training_recipe

CPU = torch.device("cpu")


@pytest.fixture
def embedder(either_data, toy):
    model = toy.model(either_data)
    return PairEmbedder(model, model, either_data, CPU)


@pytest.fixture
def batch(embedder):
    batches = InteractionBatches(embedder.data.interactions, batch_size=40, seed=0)
    return next(iter(batches.epoch(0)))


def embed(embedder, batch):
    inputs = embedder.gather(batch["user_ids"], batch["item_ids"], batch.get("popularity"))
    return embedder.embed(inputs)


def test_distinct_records_once_equals_every_row_by_itself(embedder, batch):
    popularity_BW = batch.get("popularity")
    users_BD, items_BD = embed(embedder, batch)
    data = embedder.data
    assert len(batch["user_ids"].unique()) < 40
    users, items = data.gather_users(batch["user_ids"]), batch["item_ids"]
    output = embedder.base(**users, **data.gather_items(items, popularity_BW))
    torch.testing.assert_close(users_BD, output.user_embeds / embedder.base.temperature)
    torch.testing.assert_close(items_BD, output.item_embeds)


def test_log_q_is_the_share_of_the_interactions(data, toy):
    train = toy.checkerboard()
    q_I = log_sampling_probability(data).exp()
    assert q_I.sum().item() == pytest.approx(1)
    for item in (0, 17):
        share = (train.item_ids == item).sum() / len(train)
        assert q_I[item].item() == pytest.approx(share)


def test_known_pairs_are_the_training_interactions(data, toy):
    train = toy.checkerboard()
    table = known_positives(data).contain(
        torch.arange(toy.N_USERS)[:, None], torch.arange(toy.N_ITEMS)
    )
    assert int(table.sum()) == len(train)
    assert table[train.user_ids, train.item_ids].all()


def test_negatives_that_are_all_known_leave_the_positives_alone(embedder, batch, toy):
    every_pair = torch.cartesian_prod(torch.arange(toy.N_USERS), torch.arange(toy.N_ITEMS))
    known = KnownPositives(*every_pair.unbind(1), toy.N_ITEMS)
    loss = loss_of(PairObjective(embedder, bce_loss, 3, 0, known), batch)
    users_BD, items_BD = embed(embedder, batch)
    scores_B = (users_BD * items_BD).sum(-1)
    torch.testing.assert_close(loss, bce_loss(scores_B, torch.ones(40)) / 4)


def test_negatives_are_new_at_every_step(embedder, batch):
    objective = PairObjective(embedder, bce_loss, 3, 0, None)
    assert loss_of(objective, batch, 0) == loss_of(objective, batch, 0)
    assert loss_of(objective, batch, 0) != loss_of(objective, batch, 1)


def test_negatives_have_the_popularity_of_the_interactions_own_time(toy, tmp_path):
    data = toy.encoded(tmp_path / "data", with_popularity=True)
    embedder = PairEmbedder(toy.model(data), toy.model(data), data, CPU)
    objective = PairObjective(embedder, bce_loss, 2, 0, None)
    batch = next(iter(InteractionBatches(data.interactions, batch_size=10, seed=0).epoch(0)))
    row_P = torch.cat([torch.arange(10), torch.arange(10).repeat_interleave(2)])
    item_ids_P = torch.cat([batch["item_ids"], torch.arange(20)])
    popularity_PW = objective._popularity(batch, item_ids_P, row_P)
    train = toy.checkerboard()
    counts = []
    for place in range(30):
        time = int(batch["times"][row_P[place]])
        recent = (train.times < time) & (train.times >= time - 7 * toy.DAY)
        counts.append(int((recent & (train.item_ids == int(item_ids_P[place]))).sum()))
    assert len(set(counts)) > 2
    torch.testing.assert_close(popularity_PW[:, 0], torch.tensor(counts).float().log1p())


def test_catalogue_losses_see_the_catalogue_as_of_the_earliest_interaction(toy, tmp_path):
    data = toy.encoded(tmp_path / "data", with_popularity=True)
    embedder = CatalogueEmbedder(PairEmbedder(toy.model(data), toy.model(data), data, CPU))
    batch = next(iter(InteractionBatches(data.interactions, batch_size=10, seed=1).epoch(0)))
    catalogue = embedder._catalogue(batch)
    earliest = data.catalogue(int(batch["times"].min()))
    assert torch.equal(catalogue["item_numeric"], earliest["item_numeric"])
    some = torch.tensor([1, 4, 17])
    items = embedder._items(batch, some)
    assert items.keys() == catalogue.keys()
    assert all(torch.equal(rows, catalogue[name][some]) for name, rows in items.items())
    assert not torch.equal(catalogue["item_numeric"], data.catalogue()["item_numeric"])


def test_the_gradient_is_clipped_to_the_norm(data, toy, accelerator, tmp_path):
    recipe = training_recipe(batch_size=32, max_grad_norm=0.005)
    loop = TrainingLoop(toy.model(data), data, recipe, accelerator, folder=tmp_path, seed=0)
    batch = next(iter(loop.batches.epoch(0)))
    accelerator.backward(loss_of(loop.objective, batch))
    before = torch.nn.utils.get_total_norm([p.grad for p in loop.parameters]).item()
    assert loop._clip(0.0, batch) == pytest.approx(before)
    after = torch.nn.utils.get_total_norm([p.grad for p in loop.parameters]).item()
    assert before > 0.01
    assert after == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "change"),
    [
        ("bce", {"loss": "mse"}),
        ("bce", {"n_negatives": 2}),
        ("bce", {"mask_known_positives": True}),
        ("in_batch", {"mask_known_positives": True}),
        ("in_batch", {"log_q": False}),
        ("in_batch", {"loss": "full_softmax"}),
        ("in_batch", {"batch_size": 16}),
        ("in_batch", {"num_epochs": 2, "schedule": "constant"}),
        ("in_batch", {"stop_after_epochs": 1}),
        ("in_batch", {"learning_rate": 2e-3}),
        ("in_batch", {"schedule": "linear"}),
        ("in_batch", {"warmup_fraction": 0.5}),
        ("in_batch", {"weight_decay": 0.5}),
        ("in_batch", {"embedding_weight_decay": 0.5}),
        ("in_batch", {"adam_beta1": 0.5}),
        ("in_batch", {"adam_beta2": 0.9}),
        ("in_batch", {"max_grad_norm": 0.01}),
        ("in_batch", {"gradient_accumulation_steps": 2}),
    ],
)
def test_every_option_changes_the_weights(loss, change, data, toy, accelerator, tmp_path):
    base = {"loss": loss, "batch_size": 32, "num_epochs": 3, "learning_rate": 1e-3}
    models = []
    for options in ({}, change):
        models.append(toy.model(data))
        fit(
            models[-1], data, training_recipe(**{**base, **options}), accelerator,
            validate=None, output_dir=tmp_path, seed=0,
        )  # fmt: skip
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert any(not torch.equal(first, second) for first, second in pairs)


def test_a_sample_of_all_items_is_the_exact_softmax_and_fewer_estimate_it(embedder, batch):
    catalogue = CatalogueEmbedder(embedder)
    exact = loss_of(FullSoftmaxObjective(catalogue), batch)
    whole = loss_of(FullSoftmaxObjective(catalogue, n_sampled=1000), batch)
    torch.testing.assert_close(whole, exact)
    few = dict(batch)
    for name in batch:
        few[name] = batch[name][:4]
    exact = loss_of(FullSoftmaxObjective(catalogue), few)
    sampled = FullSoftmaxObjective(catalogue, n_sampled=4)
    ids, log_weights = sampled._candidates(few, 0)
    n_own = len(few["item_ids"].unique())
    assert len(ids) == n_own + 4
    assert log_weights.exp().sum().item() == pytest.approx(embedder.data.n_items)
    estimates = torch.stack([loss_of(sampled, few, step) for step in range(200)])
    assert estimates.std() > 1e-4
    assert estimates.mean().item() == pytest.approx(exact.item(), abs=0.01)


def test_users_weigh_by_how_much_they_took():
    counts_U = torch.tensor([4, 1, 9, 0])
    catalogue = SimpleNamespace(user_counts=counts_U)
    weights_U = FullSoftmaxObjective(catalogue, user_weight_exponent=0.5)._user_weights
    # Weights 1/2, 1 and 1/3 over 14 interactions sum to 2 + 1 + 3.
    torch.testing.assert_close(weights_U[:3], torch.tensor([1 / 2, 1, 1 / 3]) * 14 / 6)


# For each option of an objective: the recipe under which it matters, and another value for it.
OPTIONS = {
    "loss": ({"loss": "in_batch"}, "full_softmax"),
    "n_negatives": ({"loss": "bce"}, 2),
    "log_q": ({"loss": "in_batch"}, False),
    "mask_known_positives": ({"loss": "full_softmax"}, True),
    "n_sampled_items": ({"loss": "full_softmax", "batch_size": 4}, 3),
    "user_weight_exponent": ({"loss": "full_softmax"}, 0.5),
    "positive_weight": ({"loss": "full_mse"}, 2.0),
    "embedding_l2": ({"loss": "full_mse"}, 3.0),
    "batch_order": ({"loss": "in_batch"}, "time"),
    "batch_size": ({"loss": "in_batch"}, 20),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_objective_is_read(option, toy, accelerator, tmp_path):
    data = toy.encoded(tmp_path / "data")
    # One user takes more than the others, so that weights by user can differ.
    user_ids, item_ids = data.training_pairs()
    data = replace(data, interactions=tmp_path / "uneven.arrow")
    rows = np.concatenate([np.arange(len(user_ids)), np.flatnonzero(user_ids == 3)])
    columns = {"user_ids": user_ids.numpy()[rows], "item_ids": item_ids.numpy()[rows]}
    write_arrays(data.interactions, columns)
    base, value = OPTIONS[option]
    losses = []
    for fields in (base, base | {option: value}):
        recipe = training_recipe(**{"batch_size": 40, **fields})
        loop = TrainingLoop(toy.model(data), data, recipe, accelerator, folder=tmp_path, seed=0)
        losses.append(loss_of(loop.objective, next(iter(loop.batches.epoch(0)))).item())
        loop.release()
    assert losses[0] != losses[1]
