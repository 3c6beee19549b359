"""Towers that read a history learn what comes next, by every loss, and never see it beforehand."""

import dataclasses

import numpy as np
import pytest
import torch

from ftmamba.data.histories import histories_of
from ftmamba.data.schema import popularity_column
from ftmamba.training import loop
from ftmamba.training import objective as objective_module
from ftmamba.training.fused_cross_entropy import fused_linear_cross_entropy
from ftmamba.training.run import make_accelerator, split_tables, train
from tests.training.conftest import forget_accelerate

from .conftest import N_ITEMS, hit_rate, ring_recipe, ring_tables, trained_on


@pytest.mark.parametrize(
    "training",
    [
        {"loss": "full_softmax"},
        {"loss": {"name": "full_softmax", "label_smoothing": 0.1}, "sequences": "every"},
        {"loss": "in_batch"},
        {"loss": {"name": "sampled_softmax", "n_negatives": 8, "negatives": "mixed"}},
        {"loss": {"name": "gbce", "n_negatives": 6}, "num_epochs": 60, "evaluate_every": 60},
        {"loss": {"name": "bce", "n_negatives": 8}, "num_epochs": 40, "evaluate_every": 40},
        {"loss": "full_softmax", "sequences": "", "batch_size": 64, "num_epochs": 12},
        {"loss": "in_batch", "sequences": "", "batch_size": 64, "num_epochs": 12},
    ],
)
def test_what_comes_next_is_learnt_and_foretold(tmp_path, training):
    tables = ring_tables(with_profile="sequences" in training)
    recipe = ring_recipe(tmp_path, **training)
    assert hit_rate(recipe, *trained_on(recipe, tables)) > 0.95


@pytest.fixture
def fresh_accelerate():
    """Forget, before and after, which precision Accelerate was started with."""
    forget_accelerate()
    yield
    forget_accelerate()


def test_in_bfloat16_the_loss_is_too_and_what_comes_next_is_learnt(
    tmp_path, fresh_accelerate, monkeypatch
):
    types = []

    def spied(*arguments, products_in, **options):
        types.append(products_in)
        return fused_linear_cross_entropy(*arguments, products_in=products_in, **options)

    monkeypatch.setattr(objective_module, "fused_linear_cross_entropy", spied)
    monkeypatch.setattr(loop, "seconds_of_products", lambda *_: (1.0, 1.0))
    tables = ring_tables()
    recipe = ring_recipe(tmp_path, mixed_precision="bf16")
    split = split_tables(tables, recipe)
    trained = train(recipe, tables, split, make_accelerator(recipe))
    assert hit_rate(recipe, split, trained) > 0.95
    assert set(types) == {torch.bfloat16}
    assert {one.dtype for one in trained.model.parameters()} == {torch.float32}


def test_what_is_left_out_is_what_was_taken_before_each_target(tmp_path, monkeypatch):
    found = []

    def spied(queries_MD, targets_M, *arguments, seen, **options):
        found.append((targets_M, seen))
        return fused_linear_cross_entropy(queries_MD, targets_M, *arguments, seen=seen, **options)

    monkeypatch.setattr(objective_module, "fused_linear_cross_entropy", spied)
    tables = ring_tables()
    recipe = ring_recipe(
        tmp_path,
        loss={"name": "full_softmax", "mask_history": True},
        num_epochs=1,
        evaluate_every=1,
    )
    trained_on(recipe, tables)
    assert found
    for targets_M, before in found:
        for target, window, n_before in zip(targets_M, before.lists, before.lengths, strict=True):
            if n_before:
                last = before.items[window, n_before - 1]
                assert target == (last + 1) % N_ITEMS
        assert before.lengths.max() == before.items.shape[1]


def test_the_test_history_has_the_validation_item_and_not_the_test_item(walked):
    recipe, _, split, trained = walked
    assert trained.result.best_score > 0.95
    assert hit_rate(recipe, split, trained) > 0.95
    histories = histories_of(split.before_test)
    events = histories.newest(np.arange(split.test.n_users), 99)
    last = events.item_ids[np.arange(len(events.lengths)), events.lengths - 1]
    assert (last == split.validation.item_ids[np.argsort(split.validation.user_ids)]).all()


def test_a_planted_future_item_changes_no_earlier_embedding(walked):
    *_, trained = walked
    model = trained.model.eval()
    items = trained.data.catalogue(None)
    with torch.inference_mode():
        items_IE = model.get_item_embeddings(**items)
        history = items_IE[torch.arange(8) % N_ITEMS][None]
        features = torch.rand(1, 8, 2)
        user = trained.data.gather_users(torch.tensor([0])) | {"user_event_features": features}
        before = model.get_user_positions(**user, user_history=history)
        for place in range(8):
            planted = history.clone()
            planted[0, place] = 9.0
            after = model.get_user_positions(**user, user_history=planted)
            assert torch.equal(after[:, : place + 1], before[:, : place + 1])
            assert not torch.equal(after[:, place + 1], before[:, place + 1])


def test_a_loss_that_is_not_finite_stops_with_the_users_whose_histories_made_it(tmp_path):
    tables = ring_tables()
    recipe = ring_recipe(tmp_path, learning_rate=1e30, max_grad_norm=0.0, warmup_fraction=0.0)
    with pytest.raises(ValueError, match=r"not finite .*the embeddings of user rows"):
        trained_on(recipe, tables)


def with_columns(**columns):
    """Return the ring with other columns of a table."""
    tables = ring_tables()
    changed = {
        name: dataclasses.replace(getattr(tables.schema, name), columns=one)
        for name, one in columns.items()
    }
    return dataclasses.replace(tables, schema=dataclasses.replace(tables.schema, **changed))


def test_sequences_learn_beside_popularity_as_of_their_own_times(tmp_path):
    columns = (*ring_tables().schema.items.columns, popularity_column(7))
    tables = with_columns(items=columns)
    recipe = ring_recipe(tmp_path, loss={"name": "full_softmax", "time_buckets": 3})
    assert hit_rate(recipe, *trained_on(recipe, tables)) > 0.9


def test_sequences_without_a_history_are_told(tmp_path):
    columns = ring_tables().schema.users.columns
    tables = with_columns(users=tuple(one for one in columns if one.kind != "history"))
    recipe = ring_recipe(tmp_path)
    with pytest.raises(ValueError, match="needs a column of kind 'history'"):
        trained_on(recipe, tables)
