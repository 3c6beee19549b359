"""What tables hold, counted by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables
from ftmamba.results import describe_column, describe_tables
from modeling_ftmamba.configuration_ftmamba import Column


def described(values, kind, **fields):
    return describe_column(pa.chunked_array([values]), Column("x", kind, **fields))


def test_missing_values_and_different_ones_are_counted():
    assert described(["a", None, "", "b", "a"], "categorical") == {"missing": 0.4, "distinct": 2}


def test_numbers_have_quantiles_that_leave_out_the_extremes():
    facts = described([None, *range(101)], "numeric")
    assert facts["missing"] == pytest.approx(1 / 102)
    assert facts["distinct"] == 101
    assert facts["quantiles"] == [5.0, 50.0, 95.0]


@pytest.mark.parametrize(
    ("values", "separator"),
    [(["war|drama", " drama ", None, ""], "|"), ([["war", "drama"], ["drama"], None, None], "")],
)
def test_of_a_set_the_members_count(values, separator):
    facts = described(values, "categories", separator=separator)
    assert facts == {"missing": 0.5, "distinct": 2}


def test_members_that_are_numbers_count():
    assert described(pa.array([[1, 2], [2], []]), "categories") == {"missing": 0.0, "distinct": 2}


def test_vectors_and_times_have_no_quantiles():
    assert described([[1.0, 2.0], None], "vector") == {"missing": 0.5}
    times = pa.array([0, 1, 1], pa.timestamp("s"))
    assert described(times, "timestamp") == {"missing": 0.0, "distinct": 2}


def test_a_column_without_any_value_has_no_quantiles():
    assert described(pa.array([None, None], pa.float64()), "numeric") == {
        "missing": 1.0, "distinct": 0
    }  # fmt: skip


def tables(times=None):
    schema = Schema.from_dict(
        {
            "users": {"key": "u", "columns": {"age": "numeric"}},
            "items": {"key": "i", "columns": {"i": "categorical"}},
            "interactions": {"user": "u", "item": "i"},
        }
    )
    users = pa.table({"u": ["a", "b"], "age": [1, None]})
    items = pa.table({"i": [str(n) for n in range(20)]})
    events = Interactions(
        np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]), times, None, n_users=2, n_items=20
    )
    return Tables(users, items, events, schema)


def test_interactions_are_summed_up():
    facts = describe_tables(tables(np.array([0, 86_400, 86_400 * 365, 5])))
    assert facts["users"]["rows"] == 2
    assert facts["users"]["columns"]["age"]["missing"] == 0.5
    assert "popularity_7d" not in facts["users"]["columns"]
    counted = facts["interactions"]
    assert counted["rows"] == 4
    assert counted["per_user"][1] == 2.0
    # Two of twenty items, of which one has two interactions and one has one.
    assert counted["share_of_top_tenth"] == 0.75
    assert (counted["first"], counted["last"]) == ("1970-01-01", "1971-01-01")
    assert json.loads(json.dumps(facts)) == facts


def test_interactions_without_times_have_no_period():
    assert "first" not in describe_tables(tables())["interactions"]


def test_the_missing_rate_is_of_the_table_as_it_was_read():
    read = load_tables(
        {"u": ["a", "b", "c", "d"], "age": ["", "3", "nan", "5"]},
        {"i": ["x"]},
        {"u": ["a"], "i": ["x"]},
        {
            "users": {"key": "u", "columns": {"age": "numeric"}},
            "items": {"key": "i", "columns": {"i": "categorical"}},
            "interactions": {"user": "u", "item": "i"},
        },
    )
    assert describe_tables(read)["users"]["columns"]["age"]["missing"] == 0.5
