"""Shapley values of two multiplied embeddings, against closed forms and their definition.

Shapes: N coalitions, C columns, E embedding.
"""

from itertools import pairwise, permutations

import pytest
import torch

from ftmamba.explanations import MOST_EXACT, N_GROUPS, ORDERS_A_GROUP, play, shares

E = 3


def linear(n_columns, seed):
    """Return an embedding that sums over the columns that have come, its start and its parts."""
    generator = torch.Generator().manual_seed(seed)
    start_E = torch.randn(E, generator=generator, dtype=torch.float64)
    parts_CE = torch.randn(n_columns, E, generator=generator, dtype=torch.float64)
    return (lambda has_come_NC: start_E + has_come_NC.double() @ parts_CE), start_E, parts_CE


def crooked(n_columns, seed):
    """Return an embedding in which every column changes what the others do."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n_columns, 7, generator=generator, dtype=torch.float64)
    out = torch.randn(7, E, generator=generator, dtype=torch.float64)
    return lambda has_come_NC: torch.tanh(has_come_NC.double() @ weights + 0.3) @ out


@pytest.mark.parametrize(("n_user", "n_item"), [(1, 1), (3, 2), (2, 4), (4, 0), (0, 3)])
def test_all_coalitions_give_the_definition(n_user, n_item):
    """What each column adds as it comes, averaged over all orders of all columns."""
    user, item, n_columns = crooked(n_user, seed=1), crooked(n_item, seed=2), n_user + n_item

    def score(come):
        has_come_C = torch.tensor([column in come for column in range(n_columns)])
        return float((user(has_come_C[None, :n_user]) * item(has_come_C[None, n_user:])).sum())

    added, orders = (
        torch.zeros(n_columns, dtype=torch.float64),
        list(permutations(range(n_columns))),
    )
    for order in orders:
        scores = [score(frozenset(order[:end])) for end in range(n_columns + 1)]
        for column, (before, after) in zip(order, pairwise(scores), strict=True):
            added[column] += (after - before) / len(orders)
    found = shares(play(user, n_user), play(item, n_item), temperature=0.5)
    torch.testing.assert_close(torch.cat([found.user, found.item]), added / 0.5)
    assert found.standard_error == 0


@pytest.mark.parametrize("n_user", [2, MOST_EXACT, MOST_EXACT + 5])
@pytest.mark.parametrize("n_item", [3, MOST_EXACT + 1])
def test_a_linear_model_has_its_closed_form(n_user, n_item):
    """Against half of the other tower's parts: each comes first as often as not."""
    user, user_E, user_CE = linear(n_user, seed=1)
    item, item_E, item_CE = linear(n_item, seed=2)
    found = shares(play(user, n_user), play(item, n_item), temperature=2.0)
    torch.testing.assert_close(found.user, user_CE @ (item_E + item_CE.sum(0) / 2) / 2.0)
    torch.testing.assert_close(found.item, item_CE @ (user_E + user_CE.sum(0) / 2) / 2.0)
    whole = float((user_E + user_CE.sum(0)) @ (item_E + item_CE.sum(0))) / 2
    assert found.score == pytest.approx(whole)
    assert found.baseline_score == pytest.approx(float(user_E @ item_E) / 2)


@pytest.mark.parametrize(("n_user", "n_item"), [(4, 5), (13, 4), (3, 12), (14, 15)])
def test_shares_add_up_to_the_difference_from_the_baseline(n_user, n_item):
    games = play(crooked(n_user, 1), n_user), play(crooked(n_item, 2), n_item)
    found = shares(*games, temperature=0.1)
    total = float(found.user.sum() + found.item.sum())
    assert abs(found.score - found.baseline_score) > 0.01
    assert total == pytest.approx(found.score - found.baseline_score, abs=1e-9)


def test_drawn_orders_come_near_the_exact_shares_within_their_error(monkeypatch):
    n_columns = 9
    user, item = crooked(n_columns, 3), crooked(n_columns, 4)
    exact = shares(play(user, n_columns), play(item, n_columns), temperature=1.0)
    monkeypatch.setattr("ftmamba.explanations.MOST_EXACT", 0)
    misses = []
    for seed in range(20):
        games = play(user, n_columns, seed), play(item, n_columns, seed + 100)
        drawn = shares(*games, temperature=1.0)
        miss = torch.cat([drawn.user - exact.user, drawn.item - exact.item]).abs().max()
        assert 0 < miss < 4 * drawn.standard_error
        misses.append(float(miss))
    spread = float(torch.cat([exact.user, exact.item]).abs().max())
    assert sum(misses) / len(misses) < 0.15 * spread


def test_so_many_orders_are_drawn_and_the_same_seed_draws_the_same():
    n_columns, n_rows = MOST_EXACT + 1, []
    user, item = crooked(n_columns, 1), play(crooked(2, 2), 2)

    def embed(has_come_NC):
        n_rows.append(len(has_come_NC))
        return user(has_come_NC)

    games = [play(embed, n_columns, seed) for seed in (5, 5, 6)]
    first, second, other = (shares(game, item, temperature=1.0).user for game in games)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert n_rows == [N_GROUPS * ORDERS_A_GROUP * (n_columns + 1)] * 3
