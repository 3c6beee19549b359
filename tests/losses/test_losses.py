"""Closed forms and laws of the losses."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from ftmamba.losses import (
    KnownPositives,
    bce_loss,
    full_mse_loss,
    full_softmax_loss,
    in_batch_loss,
    mse_loss,
    uniform_negatives,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def cross_entropy_by_hand(logits, positive, allowed):
    total = sum(math.exp(logits[place]) for place in allowed)
    return math.log(total) - logits[positive]


def test_mse_of_two_pairs_by_hand():
    loss = mse_loss(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((0.25 + 4.0) / 2)


def test_bce_of_two_pairs_by_hand():
    loss = bce_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)


@pytest.mark.parametrize("loss", [mse_loss, bce_loss])
def test_a_pair_that_does_not_count_gives_no_gradient_and_adds_zero(loss):
    scores_P = torch.tensor([0.3, -1.2, 4.0], requires_grad=True)
    labels_P = torch.tensor([1.0, 0.0, 0.0])
    value = loss(scores_P, labels_P, torch.tensor([True, True, False]))
    value.backward()
    assert value.item() == pytest.approx(loss(scores_P[:2], labels_P[:2]).item() * 2 / 3)
    assert scores_P.grad[2] == 0
    assert (scores_P.grad[:2] != 0).all()


def test_in_batch_of_three_users_by_hand():
    users_BD = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    items_MD = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, -1.0]])
    log_q_M = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    loss = in_batch_loss(
        users_BD,
        items_MD,
        positives_B=torch.arange(3),
        item_ids_M=torch.tensor([7, 8, 9]),
        log_q_M=log_q_M,
    )
    logits = (users_BD @ items_MD.T - log_q_M).tolist()
    by_hand = [cross_entropy_by_hand(logits[row], row, range(3)) for row in range(3)]
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_an_accidental_hit_is_no_negative():
    users_BD = torch.tensor([[1.0], [2.0], [3.0]])
    items_MD = torch.tensor([[0.5], [-0.5], [0.5]])
    loss = in_batch_loss(
        users_BD, items_MD, positives_B=torch.arange(3), item_ids_M=torch.tensor([4, 5, 4])
    )
    logits = (users_BD @ items_MD.T).tolist()
    allowed = [[0, 1], [0, 1, 2], [1, 2]]
    by_hand = [cross_entropy_by_hand(logits[row], row, allowed[row]) for row in range(3)]
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_a_known_positive_is_no_negative_but_stays_a_positive():
    users_BD, items_MD = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-0.5]])
    loss = in_batch_loss(
        users_BD,
        items_MD,
        positives_B=torch.arange(2),
        item_ids_M=torch.tensor([4, 5]),
        known_BM=torch.tensor([[True, True], [False, True]]),
    )
    logits = (users_BD @ items_MD.T).tolist()
    by_hand = [0.0, cross_entropy_by_hand(logits[1], 1, [0, 1])]
    assert loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_log_q_has_the_sign_that_recovers_the_full_softmax(generator):
    """With a large batch drawn by q, the corrected gradient approaches the full softmax's."""
    n_items, n_drawn = 8, 60_000
    q_I = torch.tensor([0.4, 0.25, 0.12, 0.08, 0.06, 0.04, 0.03, 0.02])
    catalogue_ID = torch.randn(n_items, 4, generator=generator)
    user_BD = torch.randn(1, 4, generator=generator, requires_grad=True)
    drawn_M = torch.multinomial(q_I, n_drawn, replacement=True, generator=generator)
    positive = 2
    drawn_M = torch.cat([torch.tensor([positive]), drawn_M[drawn_M != positive]])
    (exact,) = torch.autograd.grad(
        full_softmax_loss(user_BD, catalogue_ID, torch.tensor([positive])), user_BD
    )

    def gradient(log_q_M):
        # The positive stands once for its whole share of the draws.
        log_q_M = log_q_M.clone()
        log_q_M[0] = -math.log(n_drawn)
        loss = in_batch_loss(
            user_BD,
            catalogue_ID[drawn_M],
            positives_B=torch.tensor([0]),
            item_ids_M=drawn_M,
            log_q_M=log_q_M + math.log(n_drawn),
        )
        return torch.autograd.grad(loss, user_BD)[0]

    def error(log_q_M):
        return (gradient(log_q_M) - exact).norm() / exact.norm()

    log_q_M = q_I.log()[drawn_M]
    assert error(log_q_M) < 0.02
    assert error(-log_q_M) > 0.15
    assert error(torch.full_like(log_q_M, -math.log(n_items))) > 0.05


def test_in_batch_with_each_item_once_equals_full_softmax(generator):
    users_BD = torch.randn(5, 3, generator=generator)
    catalogue_ID = torch.randn(5, 3, generator=generator)
    order = torch.randperm(5, generator=generator)
    in_batch = in_batch_loss(
        users_BD, catalogue_ID[order], positives_B=torch.arange(5), item_ids_M=order
    )
    torch.testing.assert_close(in_batch, full_softmax_loss(users_BD, catalogue_ID, order))


def test_negatives_of_a_row_do_not_depend_on_the_other_rows():
    together = uniform_negatives(np.arange(100), 4, n_items=1000, seed=(1, 2))
    apart = uniform_negatives(np.array([70, 3]), 4, n_items=1000, seed=(1, 2))
    np.testing.assert_array_equal(together[[70, 3]], apart)
    assert (uniform_negatives(np.arange(100), 4, n_items=1000, seed=(1, 3)) != together).any()
    assert (uniform_negatives(np.arange(100), 4, n_items=1000, seed=(2, 2)) != together).any()


def test_negatives_are_uniform_and_independent_of_their_place():
    drawn = uniform_negatives(np.arange(50_000), 2, n_items=10, seed=(0, 0))
    pairs = np.bincount(drawn[:, 0] * 10 + drawn[:, 1], minlength=100)
    chi_squared = ((pairs - 500.0) ** 2 / 500.0).sum()
    assert 50 < chi_squared < 160  # 99 degrees of freedom: 99 +- 4.3 standard deviations


def test_known_positives_are_found_and_no_others():
    user_ids, item_ids = torch.tensor([0, 0, 2, 2]), torch.tensor([1, 4, 0, 4])
    known = KnownPositives(user_ids, item_ids, 5)
    table = known.contain(torch.arange(3)[:, None], torch.arange(5))
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[user_ids, item_ids] = True
    assert torch.equal(table, expected)


def catalogue_case(generator, *, n_users=5, n_items=7):
    users_UD = torch.randn(n_users, 3, generator=generator, dtype=torch.float64)
    items_ID = torch.randn(n_items, 3, generator=generator, dtype=torch.float64)
    taken_UI = torch.rand(n_users, n_items, generator=generator) < 0.4
    taken_UI[:, 0] = True
    return users_UD.requires_grad_(), items_ID.requires_grad_(), taken_UI


def test_full_mse_over_all_interactions_is_the_objective_of_implicit_als(generator):
    users_UD, items_ID, taken_UI = catalogue_case(generator)
    user_ids_B, item_ids_B = taken_UI.nonzero().unbind(1)
    loss = full_mse_loss(
        users_UD[user_ids_B],
        items_ID,
        item_ids_B,
        user_counts_B=taken_UI.sum(1)[user_ids_B],
        positive_weight=3.0,
        l2=0.7,
    )
    weights_UI = torch.where(taken_UI, 3.0, 1.0)
    errors_UI = weights_UI * (taken_UI.double() - users_UD @ items_ID.T).square()
    lengths = users_UD.square().sum() + len(users_UD) * items_ID.square().sum(1).mean()
    expected = (errors_UI.sum() + 0.7 * lengths) / taken_UI.sum()
    torch.testing.assert_close(loss, expected)
    for tensor in (users_UD, items_ID):
        found, wanted = (
            torch.autograd.grad(x, tensor, retain_graph=True) for x in (loss, expected)
        )
        torch.testing.assert_close(found, wanted)


def test_full_softmax_leaves_known_items_out_and_weighs_its_users(generator):
    users_UD, items_ID, taken_UI = catalogue_case(generator)
    positives_U, weights_U = torch.zeros(5, dtype=torch.int64), torch.tensor([1.0, 2, 0, 1, 1])
    loss = full_softmax_loss(
        users_UD, items_ID, positives_U, known_BI=taken_UI, weights_B=weights_U
    )
    scores = (users_UD @ items_ID.T).tolist()
    by_hand = [
        cross_entropy_by_hand(scores[u], 0, [0, *(~taken_UI[u]).nonzero().flatten().tolist()])
        for u in range(5)
    ]
    expected = sum(w * value for w, value in zip(weights_U.tolist(), by_hand, strict=True)) / 5
    assert loss.item() == pytest.approx(expected)
    assert taken_UI[:, 1:].any()


@pytest.mark.parametrize(
    "item_ids",
    [[0, 1, 2, 3, 4, 5], [1, 3, 5], [4], [5, 3, 0, 1], [3, 0, 3, 5, 0], []],
    ids=["all", "ascending", "none known", "in any order", "repeated", "no item"],
)
def test_known_items_of_users_among_some_are_their_pairs(item_ids):
    known = KnownPositives(torch.tensor([4, 0, 0, 2, 0]), torch.tensor([1, 3, 0, 5, 3]), 6)
    asked, items = torch.tensor([0, 1, 4, 0, 5]), torch.tensor(item_ids, dtype=torch.int64)
    expected = known.contain(asked[:, None], items)
    assert torch.equal(known.among(asked, items), expected)
    if len(items) == 6:
        assert expected.sum() == 2 + 0 + 1 + 2 + 0


def test_known_items_take_memory_for_the_items_asked_about_alone():
    n_users, n_items = 64, 1_000_000
    user_ids, item_ids = torch.arange(n_users), torch.arange(n_users) * 10
    known = KnownPositives(user_ids, item_ids, n_items)
    tracemalloc.start()
    found = known.among(user_ids, torch.arange(0, 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.equal(found.nonzero(), torch.stack([user_ids, item_ids], dim=1))
    assert peak < 4 * n_users * 1000
