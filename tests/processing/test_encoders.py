"""Each kind of column against its definition."""

from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.fitting import fit_encoder
from modeling_ftmamba.configuration_ftmamba import MISSING_ID, PADDING_ID, UNSEEN_ID, Column
from modeling_ftmamba.encoders import stable_hash

NAN = float("nan")


def fit(kind, values, **options):
    return fit_encoder(Column("x", kind, **options), "column 'x'", values)


def test_standard_scaling_has_mean_zero_and_spread_one_on_training_rows():
    encoded = fit("numeric", [1, 2, 3, None, 6]).encode([1, 2, 3, None, 6])[:, 0]
    np.testing.assert_allclose(encoded[:3], np.array([-2, -1, 0]) / np.sqrt(3.5), rtol=1e-6)
    assert np.isnan(encoded[3])
    assert fit("numeric", [1, 5], scaling="none").encode([7.5, None])[0, 0] == 7.5


def test_quantile_scaling_gives_the_normal_score_of_the_middle_rank():
    encoder = fit("numeric", [10, 20, 20, 40], scaling="quantile")
    scores = [NormalDist().inv_cdf(rank) for rank in (1 / 8, 4 / 8, 7 / 8)]
    np.testing.assert_allclose(encoder.encode([10, 20, 40])[:, 0], scores, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([15])[0, 0], (scores[0] + scores[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(encoder.encode([-1e9, 1e9])[:, 0], scores[::2], rtol=1e-6)


def test_quantile_scaling_makes_a_skewed_column_normal(rng):
    values = np.exp(3 * rng.standard_normal(50_000))
    encoder = fit("numeric", values, scaling="quantile")
    assert encoder.table.shape[1] <= 1000
    encoded = encoder.encode(values)[:, 0]
    for rank in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert np.quantile(encoded, rank) == pytest.approx(NormalDist().inv_cdf(rank), abs=0.01)


def test_edges_split_the_scaled_training_values_evenly(rng):
    values = rng.standard_normal(48_000)
    encoder = fit("numeric", values)
    encoded = encoder.encode(values)[:, 0]
    edges = encoder.column.edges
    assert len(edges) == 49
    assert (edges[0], edges[-1]) == (encoded.min(), encoded.max())
    inside = np.histogram(encoded, edges)[0]
    assert inside.min() >= 990
    assert inside.max() <= 1010


def test_edges_of_few_values_rise_and_values_almost_alike_share_a_bin():
    """A bin a millionth wide would multiply what lies beyond it by a million."""
    edges = fit("numeric", [0.0, 0.0, 0.0, 1.0, 1.0, 5.0]).column.edges
    assert len(edges) >= 2
    assert (np.diff(np.float32(edges)) > 0).all()
    edges = fit("numeric", [0.0] * 50 + [1e-6] * 50 + [1.0] * 50 + [1.0 + 1e-6] * 50).column.edges
    assert np.diff(edges).min() > 1e-4 * (edges[-1] - edges[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3, 3, None], "is constant"),
        ([None, None], "has no value at all"),
        ([0.1] * 1000, "is constant"),
    ],
)
@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_a_number_without_spread_warns_and_becomes_zero(values, message, scaling):
    with pytest.warns(UserWarning, match=f"column 'x' {message} .* becomes 0"):
        encoder = fit("numeric", values, scaling=scaling)
    encoded = encoder.encode([3, 99, None])[:, 0]
    assert encoded[:2].tolist() == [0, 0]
    assert np.isnan(encoded[2])
    assert encoder.column.edges == ()


def test_values_too_large_to_standardise_name_the_remedy():
    with pytest.raises(ValueError, match=r"cannot be standardised, .* scaling 'quantile'"):
        fit("numeric", [1e308, -1e308])
    with pytest.raises(ValueError, match=r"column 'x', row 1 .* fit in 32 bits"):
        fit("numeric", [1.0, 2.0]).encode([1.0, 1e300])


ROWS = ["rare", "b", "b", *["often"] * 5, "a", "a", *[None] * 9]


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, ["often", "a", "b", "rare"]),
        ({"min_count": 2}, ["often", "a", "b"]),
        ({"max_vocabulary": 2}, ["often", "a"]),
    ],
)
def test_known_texts_are_the_frequent_ones_and_ties_follow_the_alphabet(options, known):
    encoder = fit("categorical", ROWS, **options)
    assert list(encoder.texts) == known
    assert encoder.column.vocabulary_size == 3 + len(known)
    ids = encoder.encode([*known, None, "", "new"])[:, 0].tolist()
    assert ids == [*range(3, 3 + len(known)), MISSING_ID, MISSING_ID, UNSEEN_ID]


def test_a_text_that_occurs_in_two_spellings_is_counted_once():
    assert list(fit("categorical", [5, "7", 5.0, "7", "7", "5", b"5"]).texts) == ["5", "7"]


def test_words_for_yes_and_no_are_the_values_of_a_column_of_truth():
    encoder = fit("categorical", [True, False, None, True])
    true, false = encoder.encode([True, False])[:, 0]
    for word in ("true", "Yes", "y", "T", "ON", " ja ", "1", 1):
        assert encoder.encode([word])[0, 0] == true
    for word in ("FALSE", "no", "N", "0", "off", "Nein"):
        assert encoder.encode([word])[0, 0] == false
    assert encoder.encode(["perhaps"])[0, 0] == UNSEEN_ID
    plain = fit("categorical", ["yes", "no"])
    assert plain.encode(["Yes"])[0, 0] == UNSEEN_ID


def test_unseen_texts_share_the_buckets_after_the_known_ones():
    encoder = fit("categorical", ["often", "often", "a"], hash_buckets=7)
    words = [f"new {number}" for number in range(200)]
    ids = encoder.encode([*words, "often", None])[:, 0]
    assert encoder.column.vocabulary_size == 12
    assert set(ids[:-2].tolist()) == set(range(5, 12))
    assert ids[-2:].tolist() == [3, MISSING_ID]


def test_the_hash_never_changes():
    """It decides which row of a saved table a text has: another hash is another model."""
    assert stable_hash("Ärzte") == 11668479475804398235
    assert stable_hash("\ud800") != stable_hash("\ud801")


def slow_set_ids(encoder, value):
    """The definition, one row at a time."""
    if value is None:
        ids = [MISSING_ID]
    else:
        known = {text: 3 + row for row, text in enumerate(encoder.texts)}
        buckets = encoder.column.hash_buckets
        rare = 3 + len(known)
        ids = {
            known.get(one, rare + stable_hash(one) % buckets if buckets else UNSEEN_ID)
            for one in value
            if one
        }
        ids = sorted(ids - {UNSEEN_ID}) + [UNSEEN_ID] * (UNSEEN_ID in ids)
    width = encoder.column.max_length
    return (ids + [PADDING_ID] * width)[:width]


@pytest.mark.parametrize("options", [{}, {"hash_buckets": 3}, {"max_length": 2}, {"min_count": 9}])
def test_sets_equal_the_definition(rng, options):
    letters = list("abcdefgh")
    sets = [
        None if rng.random() < 0.1 else rng.choice([*letters, ""], rng.integers(0, 6)).tolist()
        for _ in range(300)
    ]
    encoder = fit("categories", sets[:100], **options)
    expected = [slow_set_ids(encoder, value) for value in sets]
    shuffled = [None if one is None else tuple(rng.permutation(one)) for one in sets]
    for values in (sets, pa.array(sets), pa.chunked_array([sets[:7], sets[7:]]), shuffled):
        assert encoder.encode(values).tolist() == expected


def test_a_set_is_its_ids_ascending_then_padding_and_keeps_the_members_known_best():
    encoder = fit("categories", [["b", "a", "b"], ["b"], ["c", "a"]])
    assert list(encoder.texts) == ["b", "a", "c"]
    assert encoder.column.max_length == 3
    assert encoder.encode([["c", "b"], [], None, ["z", "a", "y"]]).tolist() == [
        [3, 5, 0], [0, 0, 0], [MISSING_ID, 0, 0], [4, UNSEEN_ID, 0],
    ]  # fmt: skip
    narrow = fit("categories", [["a"], ["a"], ["b"]], max_length=2)
    assert narrow.encode([["unknown", "b", "a"], ["unknown", "b"]]).tolist() == [[3, 4], [4, 2]]
    assert encoder.encode([]).shape == (0, 3)
    assert encoder.encode(pa.array([], pa.list_(pa.string()))).shape == (0, 3)


def test_texts_are_split_and_blanks_around_members_are_dropped():
    encoder = fit("categories", ["a|b", "c", None, "a"], separator="|")
    lists = [["a", "b"], [], None, ["c", "new"], None, ["a"]]
    texts = ["b | a ", " |", None, "c|new|c", "", "a"]
    views = pa.array(texts, pa.string_view())
    encoded = pa.array(texts).dictionary_encode()
    mixed = [["b", "a"], " |", NAN, {"c", "new"}, "", ("a",)]
    for values in (texts, pa.array(texts), views, encoded, np.array(texts), mixed):
        assert np.array_equal(encoder.encode(values), encoder.encode(lists))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("categories", [None, None], "has no value at all"),
        ("categories", pa.array([None, None]), "has no value at all"),
        ("categorical", ["a", "a"], "is always the same"),
        ("timestamp", [5, 5], "is always the same"),
        ("timestamp", [None], "has no value at all"),
        ("vector", [None, None], "has no value at all"),
        ("vector", pa.array([None, None]), "has no value at all"),
    ],
)
def test_a_column_that_says_nothing_warns_and_still_encodes(kind, values, message):
    with pytest.warns(UserWarning, match=f"column 'x' {message}"):
        encoder = fit(kind, values)
    assert encoder.encode([None]).shape == (1, encoder.column.width)
    assert kind != "timestamp" or encoder.encode([7])[0, 0] == 0
    fit("categorical", ["a", None])  # gaps say something: no warning


def test_the_calendar_by_hand():
    encoder = fit("timestamp", [0, 10])
    monday_6_am = datetime(2024, 1, 1, 6, tzinfo=UTC)
    features = encoder.encode([monday_6_am, None])
    assert encoder.column.dimension == 7
    np.testing.assert_allclose(features[0, 0], (monday_6_am.timestamp() - 5) / 5, rtol=1e-6)
    np.testing.assert_allclose(features[0, 1:3], [1, 0], atol=1e-6)  # a quarter of the day
    week, year = 2 * np.pi / 28, 2 * np.pi * 0.25 / 366
    np.testing.assert_allclose(features[0, 3:5], [np.sin(week), np.cos(week)], atol=1e-6)
    np.testing.assert_allclose(features[0, 5:7], [np.sin(year), np.cos(year)], atol=1e-6)
    assert np.isnan(features[1]).all()


def test_times_are_exact_far_from_1970():
    """In 32 bits a time in seconds would be wrong by minutes."""
    encoder = fit("timestamp", [1.7e9, 1.7e9 + 1])
    one_second = encoder.encode([1.7e9, 1.7e9 + 1])
    np.testing.assert_allclose(np.diff(one_second[:, 0]), 2, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(one_second[:, 1], one_second[:, 2]), 1, rtol=1e-6)
    before_1970 = encoder.encode(["1969-12-31T18:00"])
    np.testing.assert_allclose(before_1970[0, 1:3], [-1, 0], atol=1e-6)


VECTORS = [[1.0, 2.0], None, [3.0, 4.5]]


@pytest.mark.parametrize(
    "values",
    [
        VECTORS,
        [np.array([1, 2]), NAN, (3, 4.5)],
        np.array([[1, 2], [NAN, NAN], [3, 4.5]]),
        pa.array(VECTORS),
        pa.array(VECTORS, pa.list_(pa.float32(), 2)),
        pa.array([[9.0, 9.0], *VECTORS], pa.list_(pa.float64(), 2))[1:],
        pa.array(VECTORS, pa.large_list(pa.float16())),
        pa.chunked_array([VECTORS[:1], VECTORS[1:]]),
    ],
)
def test_every_container_gives_the_same_vectors(values):
    encoder = fit("vector", values)
    assert encoder.column.dimension == 2
    encoded = encoder.encode(values)
    assert encoded.dtype == np.float32
    assert np.array_equal(encoded, np.float32([[1, 2], [NAN, NAN], [3, 4.5]]), equal_nan=True)


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, 2.0, 3.0], [1.0, NAN], [1.0, float("inf")], ["1", "2"], "ab", 5, [[1, 2]]]
)
def test_a_wrong_vector_is_named_by_row(bad):
    with pytest.raises(ValueError, match=r"column 'x', row 1 \(the first is 0\): must be a"):
        fit("vector", VECTORS).encode([[1.0, 2.0], bad])
    with pytest.raises(ValueError, match="must be a vector of 3 finite numbers, got"):
        fit("vector", VECTORS, dimension=3)
