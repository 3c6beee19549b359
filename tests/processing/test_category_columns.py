import numpy as np
import pyarrow as pa
import pytest

from modeling_ftmamba.configuration_ftmamba import MISSING_ID, PADDING_ID, UNSEEN_ID, Column
from modeling_ftmamba.encoders import CategoryEncoder


def fit_set(values, **options):
    return CategoryEncoder.fit(Column("x", "categories", **options), "column 'x'", values)


def slow_set_ids(encoder, value):
    """The definition, one row at a time."""
    if value is None:
        ids = [MISSING_ID]
    else:
        ids = {int(encoder.vocabulary.ids([member])[0]) for member in value if member}
        ids = sorted(ids - {UNSEEN_ID}) + [UNSEEN_ID] * (UNSEEN_ID in ids)
    width = encoder.column.max_length
    return (ids + [PADDING_ID] * width)[:width]


def test_categories_are_numbered_by_frequency():
    encoder = CategoryEncoder.fit(Column("x", "categorical"), "", ["b", "b", "a", None])
    assert encoder.encode(["a", "b", "new", None])[:, 0].tolist() == [4, 3, UNSEEN_ID, MISSING_ID]
    assert encoder.column.vocabulary_size == 5


def test_a_set_is_its_ids_ascending_then_padding():
    encoder = fit_set([["b", "a", "b"], ["b"], ["c", "a"]])
    assert encoder.vocabulary.texts == ["b", "a", "c"]
    assert encoder.column.max_length == 3
    assert encoder.encode([["c", "b"], [], None, ["z", "a", "y"]]).tolist() == [
        [3, 5, 0],
        [0, 0, 0],
        [MISSING_ID, 0, 0],
        [4, UNSEEN_ID, 0],
    ]


def test_a_set_too_large_keeps_the_members_known_best():
    encoder = fit_set([["a"], ["a"], ["b"]], max_length=2)
    assert encoder.encode([["unknown", "b", "a"]]).tolist() == [[3, 4]]
    assert encoder.encode([["unknown", "b"]]).tolist() == [[4, UNSEEN_ID]]


@pytest.mark.parametrize("options", [{}, {"hash_buckets": 3}, {"max_length": 2}, {"min_count": 9}])
def test_sets_equal_the_definition(rng, options):
    letters = list("abcdefgh")
    sets = [
        None if rng.random() < 0.1 else rng.choice([*letters, ""], rng.integers(0, 6)).tolist()
        for _ in range(300)
    ]
    encoder = fit_set(sets[:100], **options)
    expected = [slow_set_ids(encoder, value) for value in sets]
    for values in (sets, pa.array(sets), pa.chunked_array([sets[:7], sets[7:]])):
        assert encoder.encode(values).tolist() == expected


def test_the_order_of_the_members_means_nothing(rng):
    encoder = fit_set([["a", "b", "c", "d"]] * 2 + [["a"]])
    for _ in range(10):
        assert encoder.encode([rng.permutation(["a", "d", "new", "c"])]).tolist() == [[3, 5, 6, 2]]


def test_texts_are_split_and_blanks_around_members_are_dropped():
    encoder = fit_set(["a|b", "c", None, "a"], separator="|")
    lists = [["a", "b"], [], None, ["c", "new"], None, ["a"]]
    texts = ["b | a ", " |", None, "c|new|c", "", "a"]
    views = pa.array(texts, pa.string_view())
    encoded = pa.array(texts).dictionary_encode()
    for values in (texts, pa.array(texts), views, encoded, np.array(texts)):
        assert np.array_equal(encoder.encode(values), encoder.encode(lists))
    mixed = [["b", "a"], " |", None, {"c", "new"}, "", ("a",)]
    assert np.array_equal(encoder.encode(mixed), encoder.encode(lists))


@pytest.mark.parametrize("values", [[None, None], pa.array([None, None])])
def test_a_set_column_without_values_warns_and_still_encodes(values):
    with pytest.warns(UserWarning, match="column 'x' has no value in every training row"):
        encoder = fit_set(values)
    assert encoder.encode([["a"], None]).tolist() == [[UNSEEN_ID], [MISSING_ID]]


def test_a_constant_category_warns_and_one_with_gaps_does_not():
    with pytest.warns(UserWarning, match="column 'x' is the same in every training row"):
        CategoryEncoder.fit(Column("x", "categorical"), "column 'x'", ["a", "a"])
    CategoryEncoder.fit(Column("x", "categorical"), "column 'x'", ["a", None])


def test_no_rows_give_no_ids():
    encoder = fit_set([["a"], ["b", "a"]])
    assert encoder.encode([]).shape == (0, 2)
    assert encoder.encode(pa.array([], pa.list_(pa.string()))).shape == (0, 2)
