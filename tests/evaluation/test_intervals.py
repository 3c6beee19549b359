import json

import numpy as np
import pytest

from ftmamba.evaluation import Evaluation, Protocol, Report, paired_test, pool
from ftmamba.evaluation.result import bootstrap_means


def evaluation_of(values, user_ids=None, *, is_warm=None, mask_seen=True):
    values = np.asarray(values, float)
    n = len(values)
    return Evaluation(
        np.arange(n) if user_ids is None else np.asarray(user_ids),
        {f"{name}@10": values for name in ("NDCG", "HR", "R", "MRR")},
        np.tile(np.arange(10), (n, 1)),
        np.ones(n, bool) if is_warm is None else np.asarray(is_warm),
        np.zeros(n, np.int64),
        40,
        Protocol(k=(10,), mask_seen=mask_seen),
    )


def draws(n, seed=0):
    return np.random.default_rng(seed).random(n)


def test_bootstrap_means_equal_a_slow_loop_over_resamples():
    values, users = draws(27).reshape(9, 3), np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])
    drawn = np.random.default_rng(7).integers(7, size=(50, 7), dtype=np.int32)
    names = np.unique(users)
    expected = []
    for sample in drawn:
        rows = np.concatenate([np.flatnonzero(users == names[i]) for i in sample])
        expected.append(values[rows].mean(0))
    means = bootstrap_means(values, users, n_resamples=50, seed=7)
    np.testing.assert_allclose(means, expected, rtol=1e-12)


def test_the_normal_limit_of_many_users_has_the_ends_and_the_correlation_of_resamples(monkeypatch):
    users = np.random.default_rng(1).integers(1500, size=2000)  # some of them under two splits
    skewed = draws(2000) ** 6 + 0.5 * draws(1500, seed=3)[users]
    values = np.stack([skewed, skewed + 0.1 * draws(2000, seed=2)], axis=1)
    resampled = bootstrap_means(values, users, n_resamples=4000)
    monkeypatch.setattr("ftmamba.evaluation.result.MOST_RESAMPLED", 1000)
    limit = bootstrap_means(values, users, n_resamples=4000)
    ends = [np.quantile(means, [0.025, 0.975], axis=0) for means in (resampled, limit)]
    width = (ends[0][1] - ends[0][0])[None]
    assert (np.abs(ends[0] - ends[1]) < 0.05 * width).all()
    # What a paired test reads is the difference, far less uncertain than either mean.
    spreads = [np.diff(means, axis=1).std() for means in (resampled, limit)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.05)
    assert spreads[0] < 0.1 * resampled.std(0).min()


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values, users = draws(20).reshape(10, 2), np.arange(10)
    whole = bootstrap_means(values, users, n_resamples=99)
    monkeypatch.setattr("ftmamba.evaluation.result.N_DRAWS_AT_ONCE", 40)
    np.testing.assert_allclose(bootstrap_means(values, users, n_resamples=99), whole)


def test_interval_of_many_users_is_close_to_the_normal_one_and_nests_by_level():
    evaluation = evaluation_of(draws(2000))
    low, high = evaluation.interval("NDCG@10")
    half = 1.96 * evaluation.per_user["NDCG@10"].std() / np.sqrt(2000)
    assert low == pytest.approx(evaluation.mean("NDCG@10") - half, abs=0.05 * half)
    assert high == pytest.approx(evaluation.mean("NDCG@10") + half, abs=0.05 * half)
    wide, narrow = (evaluation.interval("HR@10", level, n_resamples=500) for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert wide != evaluation.interval("HR@10", 0.99, n_resamples=500, seed=1)
    assert evaluation_of([0.25] * 30).interval("HR@10") == (0.25, 0.25)


def test_a_user_pooled_twice_is_drawn_whole_so_repeating_a_split_narrows_nothing():
    once = evaluation_of(draws(60))
    twice = pool([once, once])
    assert len(twice) == 120
    assert twice.mean("NDCG@10") == pytest.approx(once.mean("NDCG@10"))
    np.testing.assert_allclose(twice.interval("NDCG@10"), once.interval("NDCG@10"))


def test_coverage_of_several_splits_is_the_mean_of_theirs():
    first, second = evaluation_of(draws(3)), evaluation_of(draws(3))
    second.recommended[:] += 10
    assert first.coverage(10) == second.coverage(10) == 0.25
    assert pool([first, second]).coverage(10) == 0.25


def test_a_model_against_itself_a_worse_one_and_the_other_way_round():
    same, better = evaluation_of(draws(40)), evaluation_of(draws(40) + 0.1)
    comparison = paired_test(same, same)
    assert (comparison.difference, comparison.low, comparison.high) == (0, 0, 0)
    assert comparison.p_value == 1
    comparison = paired_test(better, same)
    assert comparison.difference == pytest.approx(0.1)
    assert comparison.low > 0
    assert comparison.p_value == 2 / 10_001
    assert str(comparison).startswith("NDCG@10 +0.1000 [+0.1000, +0.1000] at 95%, p = 0.0002, 40")
    a, b = evaluation_of(draws(40, 1)), evaluation_of(draws(40, 2))
    there, back = paired_test(a, b), paired_test(b, a)
    assert there.difference == -back.difference
    assert there.low == pytest.approx(-back.high)
    assert there.p_value == back.p_value


def test_only_users_in_common_are_compared_and_matched_by_id():
    a = evaluation_of([0.1, 0.2, 0.3], [5, 7, 9])
    b = evaluation_of([0.0, 0.9, 0.2], [4, 9, 7])
    comparison = paired_test(a, b)
    assert comparison.n_users == 2
    assert comparison.difference == pytest.approx((0.3 - 0.9 + 0.2 - 0.2) / 2)


def test_rolling_cuts_are_paired_split_by_split():
    ones = [evaluation_of([0.5, 0.1], [0, 1]), evaluation_of([0.9], [0])]
    others = [evaluation_of([0.4, 0.1], [0, 1]), evaluation_of([0.6], [0])]
    comparison = paired_test(ones, others)
    assert comparison.difference == pytest.approx((0.1 + 0 + 0.3) / 3)
    assert comparison.n_users == 2
    assert comparison == paired_test(pool(ones), pool(others))


def test_repeating_a_split_makes_no_difference_more_certain():
    a, b = evaluation_of(draws(40, 1)), evaluation_of(draws(40, 2))
    once, twice = paired_test(a, b), paired_test([a, a], [b, b])
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert twice.n_users == once.n_users == 40


def test_models_of_equal_quality_are_rarely_told_apart():
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        a, b = (evaluation_of(generator.random(50)) for _ in range(2))
        p_values.append(paired_test(a, b, n_resamples=400).p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.1


def test_comparisons_that_mean_nothing_are_refused():
    a, b = evaluation_of([0.1], [1]), evaluation_of([0.1], [2])
    with pytest.raises(ValueError, match="share none"):
        paired_test(a, b)
    with pytest.raises(ValueError, match=r"same splits, got evaluations of 2 splits .* and 1"):
        paired_test([a, a], [a])
    with pytest.raises(ValueError, match="under one protocol"):
        paired_test(a, evaluation_of([0.1], [1], mask_seen=False))
    with pytest.raises(ValueError, match="pooled only under one protocol"):
        pool([a, evaluation_of([0.1], [1], mask_seen=False)])
    with pytest.raises(ValueError, match="no evaluation to pool"):
        pool([])


def test_a_metric_that_was_not_evaluated_is_named_with_its_neighbour():
    evaluation = evaluation_of([0.1, 0.2])
    with pytest.raises(ValueError, match=r"no metric 'NDGC@10' .*did you mean 'NDCG@10'"):
        evaluation.mean("NDGC@10")
    with pytest.raises(ValueError, match="coverage was asked at k=7"):
        evaluation.coverage(7)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level of an interval"):
            evaluation.interval("NDCG@10", level)
    with pytest.raises(ValueError, match="no users"):
        evaluation.of(np.zeros(2, bool)).mean("NDCG@10")


def test_the_dictionary_survives_json_and_holds_both_kinds_of_users():
    values = np.array([0.25, 0.75, 0.5, 0.5])
    evaluation = evaluation_of(values, is_warm=[True, True, True, False])
    report = evaluation.to_dict(n_resamples=200)
    assert json.loads(json.dumps(report)) == report
    assert report["metrics"]["NDCG@10"] == 0.5
    assert report["metrics"]["coverage@10"] == 0.25
    assert report["intervals"]["NDCG@10"] == list(evaluation.interval("NDCG@10", n_resamples=200))
    assert (report["n_users"], report["warm"]["n_users"], report["cold"]["n_users"]) == (4, 3, 1)
    assert "seen items masked" in report["protocol"]
    assert "warm" not in evaluation.warm.to_dict(n_resamples=20)


def test_the_table_reads_as_written_here():
    report = Report.of(
        {
            "FT-Mamba": evaluation_of([0.5, 0.5, 0.25], is_warm=[True, True, False]),
            "popularity": evaluation_of([0.25, 0.25, 0.25], is_warm=[True, True, False]),
        },
        split="random",
    )
    assert str(report) == (
        "random; full ranking of 40 items, seen items masked, ties to the lower item id\n\n"
        "| model      | NDCG@10 [95 %]       | HR@10 | R@10  | MRR@10 | coverage@10 "
        "| warm (2) NDCG@10     | cold (1) NDCG@10     |\n"
        "|------------|----------------------|-------|-------|--------|-------------"
        "|----------------------|----------------------|\n"
        "| FT-Mamba   | 0.417 [0.250, 0.500] | 0.417 | 0.417 | 0.417  | 0.250       "
        "| 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] |\n"
        "| popularity | 0.250 [0.250, 0.250] | 0.250 | 0.250 | 0.250  | 0.250       "
        "| 0.250 [0.250, 0.250] | 0.250 [0.250, 0.250] |"
    )
    html = report._repr_html_()
    assert html.count("<tr>") == 3
    assert "<td>FT-Mamba</td><td>0.417 [0.250, 0.500]</td>" in html
    everybody = Report.of({"<popularity>": evaluation_of(draws(5))}, n_resamples=20)
    assert "warm" not in str(everybody)
    assert "<td>&lt;popularity&gt;</td>" in everybody._repr_html_()
