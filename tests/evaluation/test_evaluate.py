from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from ftmamba.data.interactions import Interactions, ItemsByUser
from ftmamba.evaluation import EmbeddingScorer, Protocol, evaluate
from ftmamba.evaluation.result import pool


class Table:
    """Scores written down, one row a user."""

    name = "table"

    def __init__(self, scores):
        self.rows = np.array(scores, np.float32)

    def scores(self, user_ids):
        return self.rows[user_ids]


def pairs(*pairs, n_users=3, n_items=5):
    users, items = zip(*pairs, strict=True)
    return Interactions(np.array(users), np.array(items), None, None, n_users, n_items)


SCORES = [[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 1, 1, 1]]
TOP_TWO = Protocol(k=(1, 2))


def test_a_ranking_of_five_items_done_on_paper():
    evaluation = evaluate(
        Table(SCORES),
        test=pairs((0, 2), (0, 4), (2, 1)),
        seen=pairs((0, 0), (2, 0), (1, 3), (1, 0)),
        protocol=TOP_TWO,
    )
    # user 0: item 0 masked, then 1, 2 (hit). User 2: item 0 masked, ties, then 1 (hit), 2.
    assert evaluation.user_ids.tolist() == [0, 2]
    assert evaluation.recommended.tolist() == [[1, 2], [1, 2]]
    assert evaluation.per_user["HR@1"].tolist() == [0, 1]
    assert evaluation.per_user["MRR@2"].tolist() == [0.5, 1]
    assert evaluation.per_user["R@2"].tolist() == [0.5, 1]
    assert evaluation.per_user["P@2"].tolist() == [0.5, 0.5]
    assert evaluation.mean("HR@1") == 0.5
    assert evaluation.coverage(1) == 1 / 5
    assert evaluation.coverage(2) == 2 / 5
    # counts in training: item 0 three times, item 3 once, the others never
    assert evaluation.per_user["popularity_rank@2"].tolist() == [4, 4]


def test_seen_items_are_ranked_when_the_protocol_does_not_mask_them():
    seen = pairs((0, 0))
    protocol = Protocol(k=(2,), mask_seen=False)
    evaluation = evaluate(Table(SCORES), test=pairs((0, 2)), seen=seen, protocol=protocol)
    assert evaluation.recommended.tolist() == [[0, 1]]
    # Item 0 has the first rank, the four others share those from 2 to 5.
    assert evaluation.per_user["popularity_rank@2"].tolist() == [(1 + 3.5) / 2]
    without = evaluate(Table(SCORES), test=pairs((0, 2)), protocol=protocol)
    assert without.recommended.tolist() == [[0, 1]]
    assert evaluate(Table(SCORES), test=seen, protocol=protocol).mean("MRR@2") == 1
    assert "popularity_rank@2" not in without.per_user


def test_test_items_that_the_mask_hides_are_counted():
    seen = pairs((0, 0), (0, 2), (0, 2), (2, 1))
    test = pairs((0, 2), (0, 4), (0, 2), (1, 1), (2, 1))
    found = evaluate(Table(SCORES), test=test, seen=seen, protocol=TOP_TWO)
    assert found.unreachable == (2, 4, 1)
    words = "masked are 2 of 4 test items, which no model can recommend (1 users have no other)"
    assert found.to_dict()["protocol"].endswith(words)
    assert found.to_dict()["unreachable"] == {"items": 2, "of_items": 4, "users": 1}
    assert found.warm.unreachable == found.unreachable
    assert pool([found, found]).unreachable == (4, 8, 2)
    free = replace(TOP_TWO, mask_seen=False)
    kept = evaluate(Table(SCORES), test=test, seen=seen, protocol=free)
    assert kept.unreachable == (0, 0, 0)
    assert "masked are" not in kept.to_dict()["protocol"]


def test_users_who_have_seen_nearly_everything_get_a_short_list_or_none():
    everything = [(2, item) for item in range(5)]
    seen = pairs((0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (1, 4), *everything)
    test = pairs((0, 0), (0, 4), (1, 4), (2, 1))
    evaluation = evaluate(Table(SCORES), test=test, seen=seen, protocol=Protocol(k=(3,)))
    assert evaluation.recommended.tolist() == [[4, -1, -1], [2, 1, 0], [-1, -1, -1]]
    assert evaluation.per_user["HR@3"].tolist() == [1, 0, 0]
    assert evaluation.coverage(3) == 4 / 5
    # Item 3 is the most popular, the others share the ranks from 2 to 5; no list has the middle.
    assert evaluation.per_user["popularity_rank@3"].tolist() == [3.5, 3.5, 3]


def test_an_empty_rank_is_no_hit_on_the_last_item_of_the_user_before():
    seen = pairs((1, 0), (1, 1), (1, 2), (1, 3))
    evaluation = evaluate(
        Table(SCORES), test=pairs((0, 4), (1, 0)), seen=seen, protocol=Protocol(k=(2,))
    )
    assert evaluation.recommended.tolist() == [[0, 1], [4, -1]]
    assert evaluation.per_user["HR@2"].tolist() == [0, 0]


def test_items_scored_minus_infinity_are_not_recommended():
    scores = [[-np.inf, 1, -np.inf, -np.inf, 0]]
    evaluation = evaluate(
        Table(scores), test=pairs((0, 2)), seen=pairs((0, 1)), protocol=Protocol(k=(3,))
    )
    assert evaluation.recommended.tolist() == [[4, -1, -1]]


def random_problem(n_users=40, n_items=61, n_levels=5):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, n_levels, (n_users, n_items))

    def draw(n):
        users, items = generator.integers(0, n_users, n), generator.integers(0, n_items, n)
        return Interactions(users, items, None, None, n_users, n_items)

    return Table(scores), draw(90), draw(700)


def test_metrics_equal_a_slow_loop_over_users_and_items():
    scorer, test, seen = random_problem()
    evaluation = evaluate(scorer, test=test, seen=seen)
    assert len(evaluation) > 20
    for row, user in enumerate(evaluation.user_ids.tolist()):
        seen_items = set(seen.item_ids[seen.user_ids == user].tolist())
        wanted = set(test.item_ids[test.user_ids == user].tolist())
        ranking = sorted(
            (item for item in range(61) if item not in seen_items),
            key=lambda item, user=user: (-scorer.rows[user, item], item),
        )[:10]
        hits = [item in wanted for item in ranking]
        gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits))
        best = sum(1 / np.log2(rank + 2) for rank in range(min(10, len(wanted))))
        assert evaluation.recommended[row].tolist() == ranking
        assert evaluation.per_user["R@10"][row] == sum(hits) / len(wanted)
        assert evaluation.per_user["NDCG@10"][row] == pytest.approx(gain / best)


@pytest.mark.parametrize("users_per_block", [1, 7, 1000])
def test_the_size_of_a_block_and_the_order_of_interactions_change_nothing(users_per_block):
    scorer, test, seen = random_problem()
    whole = evaluate(scorer, test=test, seen=seen)
    test, seen = test.select(np.arange(90)[::-1]), seen.select(np.arange(700)[::-1])
    blocked = evaluate(scorer, test=test, seen=seen, users_per_block=users_per_block)
    np.testing.assert_array_equal(whole.recommended, blocked.recommended)
    for metric, values in whole.per_user.items():
        np.testing.assert_array_equal(values, blocked.per_user[metric])


@pytest.mark.parametrize(("scores_at_once", "size"), [(61 * 7 + 60, 7), (60, 1)])
def test_a_block_has_as_many_users_as_fit(monkeypatch, scores_at_once, size):
    module = import_module("ftmamba.evaluation.evaluate")  # its package has a function of this name
    monkeypatch.setattr(module, "N_SCORES_AT_ONCE", scores_at_once)
    scorer, test, seen = random_problem()
    sizes, scores = [], scorer.scores
    scorer.scores = lambda user_ids: sizes.append(len(user_ids)) or scores(user_ids)
    n_users = len(evaluate(scorer, test=test, seen=seen))
    assert sizes == [size] * (n_users // size) + [n_users % size] * (n_users % size > 0)


def test_equal_embeddings_tie_wherever_they_stand_and_however_many_users_are_asked():
    users, items = torch.randn(33, 48), torch.randn(1, 48).repeat(257, 1)
    scorer = EmbeddingScorer(users, items, temperature=0.07)
    test = Interactions(np.arange(33), np.zeros(33, int), None, None, 33, 257)
    protocol = Protocol(k=(10,), mask_seen=False)
    for users_per_block in (1, 5, 33):
        evaluation = evaluate(scorer, test=test, protocol=protocol, users_per_block=users_per_block)
        assert (evaluation.recommended == np.arange(10)).all()


def test_embedding_scores_are_inner_products_over_the_temperature():
    users, items = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3)
    scores = EmbeddingScorer(users, items, temperature=0.5).scores(np.array([2, 0]))
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores, users.detach()[[2, 0]] @ items.T * 2)
    seen = ItemsByUser(np.array([0, 2, 2, 3, 3]), np.array([5, 5, 1]))  # user 0: 5 twice, 2: 1
    scorer = EmbeddingScorer(users, items, temperature=0.5, seen=seen, repeat_bias=-3.0)
    expected = scores.clone()
    expected[[0, 1], [1, 5]] -= 6
    torch.testing.assert_close(scorer.scores(np.array([2, 0])), expected)


def test_the_scores_of_the_model_are_left_as_they_are():
    class Shared:
        def __init__(self, rows):
            self.rows = rows

        def scores(self, user_ids):  # noqa: ARG002
            return self.rows

    for rows in (np.ones((1, 5), np.float32), torch.ones(1, 5)):
        evaluate(Shared(rows), test=pairs((0, 2)), seen=pairs((0, 0)), protocol=TOP_TWO)
        assert np.asarray(rows).tolist() == [[1] * 5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_scores_of_any_number_type_are_ranked(dtype):
    class Typed(Table):
        def scores(self, user_ids):
            return torch.from_numpy(self.rows[user_ids] * 100).to(dtype)

    evaluation = evaluate(
        Typed(SCORES), test=pairs((0, 2), (1, 0)), seen=pairs((0, 0)), protocol=TOP_TWO
    )
    assert evaluation.recommended.tolist() == [[1, 2], [4, 3]]


def test_warm_users_are_those_with_seen_items():
    evaluation = evaluate(
        Table(SCORES), test=pairs((0, 2), (2, 1)), seen=pairs((2, 0)), protocol=TOP_TWO
    )
    assert evaluation.is_warm.tolist() == [False, True]
    assert evaluation.warm.user_ids.tolist() == [2]
    assert evaluation.cold.mean("HR@2") == 0
    assert evaluation.warm.mean("HR@2") == 1


def test_nan_scores_stop_with_user_and_item():
    scores = [row[:] for row in SCORES]
    scores[2][3] = float("nan")
    with pytest.raises(ValueError, match=r"scorer 'table' gave NaN for 1 of .*user 2 and item 3"):
        evaluate(Table(scores), test=pairs((0, 2), (2, 1)), seen=pairs((0, 0)), protocol=TOP_TWO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scorer": Table([row[:4] for row in SCORES])},
            r"1 users and 5 items, got shape \(1, 4\)",
        ),
        ({"protocol": Protocol()}, "k=10 is larger than the catalogue of 5 items"),
        ({"seen": None}, "masks seen items, but `seen` is missing"),
        ({"test": pairs((0, 2)).select(np.array([], int))}, "no test interaction"),
        ({"seen": pairs((0, 0), n_users=4)}, "got 3 users x 5 items and 4 x 5"),
        ({"seen": pairs((0, 0), n_items=6)}, "got 3 users x 5 items and 3 x 6"),
    ],
)
def test_questions_without_an_answer_are_refused(options, message):
    usual = {"test": pairs((0, 2)), "seen": pairs((0, 0)), "protocol": TOP_TWO}
    scorer = options.get("scorer", Table(SCORES))
    options = usual | {name: value for name, value in options.items() if name != "scorer"}
    with pytest.raises(ValueError, match=message):
        evaluate(scorer, **options)


def test_lists_as_long_as_the_catalogue_are_allowed():
    protocol = Protocol(k=(5,), mask_seen=False)
    evaluation = evaluate(Table(SCORES), test=pairs((1, 2)), protocol=protocol)
    assert evaluation.recommended.tolist() == [[4, 3, 2, 1, 0]]
    assert evaluation.mean("R@5") == 1


@pytest.mark.parametrize("k", [(), (0,), (2.5,), (True,)])
def test_a_protocol_refuses_a_wrong_k(k):
    with pytest.raises(ValueError, match="k must be whole numbers >= 1"):
        Protocol(k=k)


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="same width"):
        EmbeddingScorer(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be positive"):
        EmbeddingScorer(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)
