"""The fast search for the top items returns what all scores return, whatever the numbers."""

import numpy as np
import pytest
import torch

from ftmamba.data.interactions import Interactions
from ftmamba.evaluation import EmbeddingScorer, Protocol, evaluate, inner_products
from ftmamba.evaluation.inner_products import longest_of, rounding_errors, tile_size
from modeling_ftmamba.catalogue import top_k

NOTHING = (np.empty(0, np.int64), np.empty(0, np.int64))


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 128 items, so that a small catalogue has many."""
    monkeypatch.setattr(inner_products, "TILE_SIZE", 128)
    monkeypatch.setattr(inner_products, "GROUP_SIZE", 8)


def slow_top_items(users, items, k, masked=NOTHING):
    """Score everything, mask, sort by score and then by item."""
    scores = (users.double() @ items.double().T).float()
    scores[masked[0], masked[1]] = -torch.inf
    return top_k(scores, k)[1].numpy()


def top_items(users, items, k, masked=NOTHING):
    queries = users.double()
    return inner_products.top_items(queries, items, k, masked, longest=longest_of(items))


def masked_pairs(n_users, n_items, n_each, seed=0):
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n_users), n_each)
    return rows, generator.integers(0, n_items, len(rows))


def share_sure(users, items, k, masked=NOTHING):
    """Compare where the search is sure; return the share of these users."""
    found, is_sure = top_items(users, items, k, masked)
    expected = slow_top_items(users, items, k, masked)
    np.testing.assert_array_equal(found[is_sure], expected[is_sure])
    return is_sure.mean()


@pytest.mark.parametrize("n_items", [128, 129, 256, 1000, 1024, 1031])
@pytest.mark.parametrize("k", [1, 3, 8, 9, 30])
def test_random_embeddings_with_masked_items(n_items, k):
    users, items = torch.randn(65, 48), torch.randn(n_items, 48)
    assert share_sure(users, items, k) == 1
    assert share_sure(users, items, k, masked_pairs(65, n_items, 20)) == 1


def test_the_best_items_are_masked():
    users, items = torch.randn(20, 16), torch.randn(700, 16)
    best = slow_top_items(users, items, 60)
    assert share_sure(users, items, 5, (np.repeat(np.arange(20), 60), best.reshape(-1))) == 1


@pytest.mark.parametrize(("first", "last"), [(0.1, 9), (9, 0.1)])
def test_items_sorted_by_score(first, last):
    lengths = torch.linspace(first, last, 1024)
    items = torch.nn.functional.normalize(torch.randn(1024, 16).abs()) * lengths[:, None]
    assert share_sure(torch.rand(30, 16), items, 4, masked_pairs(30, 1024, 9)) == 1


@pytest.mark.parametrize("n_copies", [2, 5, 40])
def test_equal_items_are_ordered_by_their_ids(n_copies):
    items = torch.randn(1024 // n_copies, 16).repeat(n_copies, 1)
    items = items[torch.randperm(len(items))]
    assert share_sure(torch.randn(40, 16), items, 4, masked_pairs(40, len(items), 6)) > 0.9


def test_candidates_nearer_than_rounding_are_ordered_exactly():
    items = torch.randn(900, 64)
    items[::100] = 2 * torch.nn.functional.normalize(torch.ones(64), dim=0) * 8
    items[::100] += 1e-6 * torch.randn(9, 64)
    users = torch.ones(12, 64) + 1e-2 * torch.randn(12, 64)
    exact, rough = slow_top_items(users, items, 6), top_k(users @ items.T, 6)[1].numpy()
    assert (exact != rough).any()
    assert share_sure(users, items, 6) == 1


def test_users_with_too_many_equal_scores_are_left_to_the_slow_way_and_no_others():
    users, items = torch.randn(9, 16), torch.randn(1000, 16)
    users[4] = 0
    masked = (np.full(997, 7), np.arange(997))  # of user 7 three items are left
    _, is_sure = top_items(users, items, 4, masked)
    assert is_sure.tolist() == [row not in (4, 7) for row in range(9)]
    assert share_sure(users, items[:1].expand(1000, 16).contiguous(), 4) == 0


def test_a_user_with_fewer_items_left_than_ranks_is_left_to_the_slow_way():
    # All items of so small a catalogue may be candidates.
    masked = (np.full(197, 7), np.arange(197))
    _, is_sure = top_items(torch.randn(9, 16), torch.randn(200, 16), 4, masked)
    assert is_sure.tolist() == [row != 7 for row in range(9)]


@pytest.mark.parametrize("spoiled", [torch.inf, torch.nan, 3e38])
def test_numbers_that_are_not_finite_or_too_large_are_left_to_the_slow_way(spoiled):
    users, items = torch.randn(3, 16), torch.randn(300, 16)
    users[1, 5] = spoiled
    _, is_sure = top_items(users, items, 4)
    assert is_sure.tolist() == [True, False, True]
    items[7, 3] = spoiled
    _, is_sure = top_items(torch.randn(3, 16), items, 4)
    assert not is_sure.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e12])
def test_the_scale_of_the_numbers_does_not_matter(scale):
    items = torch.randn(500, 16) * scale
    assert share_sure(torch.randn(20, 16), items, 4, masked_pairs(20, 500, 5)) == 1


def test_a_matrix_product_of_less_precision_is_noticed(monkeypatch):
    product = torch.mm

    def half(users, items, *, out):
        return out.copy_(product(users.bfloat16(), items.bfloat16()))

    monkeypatch.setattr(torch, "mm", half)
    assert share_sure(torch.randn(20, 16), torch.randn(600, 16), 4) == 0


@pytest.mark.parametrize("width", [1, 3, 64, 500])
def test_rounding_stays_within_its_bound(width):
    users, items = torch.randn(50, width).double() / 0.07, torch.randn(400, width)
    exact = (users @ items.double().T).float().double()
    off_U = ((users.float() @ items.T).double() - exact).abs().amax(1).numpy()
    bound_U = rounding_errors(users, longest_of(items))
    assert (off_U <= bound_U).all()
    assert (bound_U < 1e-4 * width * exact.abs().amax(1).numpy()).all()


def test_hardly_any_item_is_scored_exactly(monkeypatch):
    counts = []
    product = torch.bmm

    def counted(users, items):
        counts.append(len(users))
        return product(users, items)

    monkeypatch.setattr(torch, "bmm", counted)
    assert share_sure(torch.randn(100, 32), torch.randn(4000, 32), 5) == 1
    assert counts[0] < 100 * 5 * 8


class AllScores:
    """The same scores, without the fast search."""

    def __init__(self, scorer):
        self.scores = scorer.scores


def evaluation_case(n_users=60, n_items=700, spoil=lambda _users, _items: None):
    generator = np.random.default_rng(1)
    users, items = torch.randn(n_users, 24), torch.randn(n_items, 24)
    spoil(users, items)

    def draw(n):
        user_ids, item_ids = generator.integers(0, n_users, n), generator.integers(0, n_items, n)
        return Interactions(user_ids, item_ids, None, None, n_users, n_items)

    return EmbeddingScorer(users, items, temperature=0.3), draw(400), draw(5000)


@pytest.mark.parametrize("users_per_block", [None, 1, 7, 1000])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_an_evaluation_is_the_same_either_way(users_per_block, mask_seen, monkeypatch):
    def spoil(users, items):
        users[::9] = 0  # these tie everywhere
        items[::5] = items[3]

    scorer, test, seen = evaluation_case(spoil=spoil)
    protocol = Protocol(k=(1, 5), mask_seen=mask_seen)
    options = {"test": test, "seen": seen, "protocol": protocol}
    assert scorer.can_search(5)
    slow = evaluate(AllScores(scorer), **options)
    asked = []
    scores = EmbeddingScorer.scores
    monkeypatch.setattr(
        EmbeddingScorer, "scores", lambda self, ids: asked.extend(ids.tolist()) or scores(self, ids)
    )
    fast = evaluate(scorer, users_per_block=users_per_block, **options)
    assert {0, 9, 18} <= set(asked)
    assert len(set(asked)) == len(asked) < 20
    np.testing.assert_array_equal(fast.recommended, slow.recommended)
    for name, values in slow.per_user.items():
        np.testing.assert_array_equal(fast.per_user[name], values)


def test_a_user_who_has_seen_nearly_everything_gets_the_rest():
    scorer, test, _ = evaluation_case()
    users, items = np.repeat(np.arange(60), 698), np.tile(np.arange(698), 60)
    seen = Interactions(users, items, None, None, 60, 700)
    evaluation = evaluate(scorer, test=test, seen=seen, protocol=Protocol(k=(5,)))
    assert all(set(row[:2]) == {698, 699} for row in evaluation.recommended.tolist())
    assert (evaluation.recommended[:, 2:] == -1).all()


def test_embeddings_that_are_nan_or_of_another_catalogue_are_refused():
    scorer, test, seen = evaluation_case(spoil=lambda users, _: users[9].fill_(torch.nan))
    options = {"test": test, "seen": seen, "protocol": Protocol(k=(5,))}
    with pytest.raises(ValueError, match=r"gave NaN for .* first for user 9 and item 0"):
        evaluate(scorer, **options)
    with pytest.raises(ValueError, match="700 items, got shape"):
        evaluate(EmbeddingScorer(scorer.users, scorer.items[:500]), **options)


@pytest.mark.parametrize(
    ("n_items", "dtype", "k", "expected"),
    [
        (4096, torch.float32, 32, True),
        (4095, torch.float32, 10, False),
        (4096, torch.float64, 10, False),
        (8191, torch.float32, 33, False),
        (8192, torch.float32, 64, True),
    ],
)
def test_the_search_is_for_large_catalogues_and_short_lists(
    n_items, dtype, k, expected, monkeypatch
):
    monkeypatch.undo()
    scorer = EmbeddingScorer(torch.randn(2, 4), torch.randn(n_items, 4, dtype=dtype))
    assert scorer.can_search(k) == expected


def test_a_large_catalogue_with_tiles_of_the_usual_size(monkeypatch):
    monkeypatch.undo()
    assert [tile_size(k) for k in (1, 32, 33, 100)] == [2048, 2048, 4096, 8192]
    users, items = torch.randn(40, 64), torch.randn(20_001, 64)
    masked = masked_pairs(40, 20_001, 50)
    for k in (1, 10, 64, 100):
        assert share_sure(users, items, k, masked) == 1
