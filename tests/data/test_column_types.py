"""How raw columns become what the schema says."""

import pyarrow as pa
import pytest

from ftmamba.data.column_types import key_texts, numbers, typed_column
from modeling_ftmamba.columns import Column


def typed(values, kind, **options):
    values = pa.chunked_array([values])
    return typed_column(values, Column("c", kind, **options), "users")


def test_texts_become_numbers_and_their_words_for_nothing_become_missing():
    texts = [" 1", "+2.5", "-3e2", ".5", "", "NA", "nan", "NULL", "None", None]

    found = numbers(pa.chunked_array([texts[:4], texts[4:]]), "c", "users")

    assert found.to_pylist() == [1, 2.5, -300, 0.5, *[None] * 6]


def test_whole_numbers_stay_whole():
    assert typed(["1", "2", ""], "numeric").to_pylist() == [1, 2, None]
    assert typed([1.0, 2.0], "numeric").type == pa.int64()
    assert typed([1.5, 2.0], "numeric").type == pa.float64()


def test_nan_is_missing_and_booleans_are_numbers():
    assert typed([1.5, float("nan")], "numeric").to_pylist() == [1.5, None]
    assert typed([True, None, False], "numeric").to_pylist() == [1, None, 0]


def test_a_column_without_any_number_stays_missing():
    assert typed(pa.nulls(2), "numeric").null_count == 2
    assert typed(["", "NA"], "numeric").null_count == 2


def test_keys_are_texts_and_five_is_five():
    assert key_texts(pa.chunked_array([[5.0, 6.0]])).to_pylist() == ["5", "6"]
    assert key_texts(pa.chunked_array([[5, 6]])).to_pylist() == ["5", "6"]
    assert key_texts(pa.chunked_array([["005", "6"]])).to_pylist() == ["005", "6"]


@pytest.mark.parametrize(
    ("texts", "separator"),
    [
        (["[0.5, 1]", "[2,3]"], ""),
        (["0.5 1", " 2  3 "], ""),
        (["(0.5;1)", "2;3"], ""),
        (["0.5_1", "2_3"], "_"),
    ],
)
def test_vectors_are_read_from_texts(texts, separator):
    assert typed(texts, "vector", separator=separator).to_pylist() == [[0.5, 1.0], [2.0, 3.0]]


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="row 3 has 1 numbers, the first row with a vector has 2"):
        typed([[1.0, 2.0], None, [3.0]], "vector")


def test_vectors_of_words_are_refused():
    with pytest.raises(ValueError, match="column 'c': a text is no list of numbers"):
        typed(["a b"], "vector")
    with pytest.raises(ValueError, match="kind 'vector' needs lists of numbers"):
        typed([["a"]], "vector")


def test_sets_may_be_lists_or_separated_texts():
    assert typed([["a"], None], "categories").to_pylist() == [["a"], None]
    assert typed(["a|b", None], "categories", separator="|").to_pylist() == ["a|b", None]


def test_moments_may_be_texts_or_epoch_seconds():
    assert typed(["86400", ""], "timestamp").to_pylist() == [86400, None]
    (moment,) = typed(["1970-01-02"], "timestamp").to_pylist()
    assert moment.timestamp() == 86400
