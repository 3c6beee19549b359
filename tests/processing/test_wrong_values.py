"""What a person reads who handed over something wrong: thing, rule, value, place, remedy."""

import re
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

WRONG = [
    ("age", "31", "must be a finite number, got '31'"),
    ("age", float("inf"), "must be a finite number, got inf"),
    ("age", [31], "must be a finite number, got [31]"),
    ("age", 10**400, "must be a finite number, got 1000"),
    ("age", date(2020, 1, 1), "must be a finite number, got datetime.date(2020, 1, 1)"),
    ("job", ["doctor"], "must be a single text, number, true/false or date, got ['doctor']"),
    ("job", {"a": 1}, "must be a single text, number, true/false or date, got {'a': 1}"),
    ("job", b"\xff", "must be a single text, number, true/false or date, got b'\\xff'"),
    ("joined", "yesterday", "must be a time between the years 1 and 9999"),
    ("joined", True, "must be a time between the years 1 and 9999"),
    ("joined", [5], "must be a time between the years 1 and 9999"),
    ("genres", 5, "must be a list of texts, or one text with '|' between its members, got 5"),
    ("genres", [["a"]], "a member must be a single text, number, true/false or date, got ['a']"),
    ("tags", "a|b", "must be a list of texts; to split a text, give the column a separator, got "),
    ("text", [1.0], "must be a vector of 3 finite numbers, got [1.0]"),
]


def tower_of(name):
    return "user" if name in ("age", "job", "joined") else "item"


@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_a_wrong_value_in_a_record_is_named_by_column_row_and_rule(fitted, name, value, rule):
    tower = tower_of(name)
    message = f"{tower} column '{name}', row 1 (the first is 0): {rule}"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fitted(**{f"{tower}s": [{name: None}, {name: value}]})


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("age", ["31"], "must be a finite number, got '31'"),
        ("age", [float("inf")], "must be a finite number, got inf"),
        ("age", [date(2020, 1, 1)], "must be a finite number, got"),
        ("job", [["doctor"]], "must be a single text, number, true/false or date, got ['doctor']"),
        ("job", [b"\xff"], "must be a single text, number, true/false or date, got b'\\xff'"),
        ("joined", [True], "must be a time between the years 1 and 9999"),
        ("joined", ["yesterday"], "must be a time between the years 1 and 9999"),
        ("joined", [[5]], "must be a time between the years 1 and 9999"),
        ("genres", [5], "must be a list of texts, or one text with '|' between its members, got 5"),
        ("genres", [[["a"]]], "a member must be a single text, number, true/false or date, got ["),
        ("tags", ["a|b"], "must be a list of texts; to split a text, give the column a separator"),
        ("text", [[1.0]], "must be a vector of 3 finite numbers, got [1.0]"),
        ("text", [["a"]], "must be a list of numbers, got ['a']"),
    ],
)
def test_a_wrong_value_in_a_table_is_named_too(fitted, name, values, rule):
    tower = tower_of(name)
    table = pa.table({name: [None, *values]})
    message = f"{tower} column '{name}', row 1 (the first is 0): {rule}"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fitted(**{f"{tower}s": table})


def test_a_record_of_unknown_columns_is_an_error_with_a_suggestion(fitted):
    with pytest.raises(ValueError, match="no known column, got: agee; did you mean 'age'"):
        fitted(users={"agee": 3})
    with pytest.raises(ValueError, match="the item records have no known column"):
        fitted(items=pa.table({"nothing": [1]}))


def test_a_source_of_no_known_form_is_refused(fitted):
    with pytest.raises(ValueError, match=r"users must be a record \(dict\), a list of records"):
        fitted(users="users.csv")
    with pytest.raises(ValueError, match=r"items, row 1 .* a record must be a dict"):
        fitted(items=[{}, 5])
    with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, got 'tf'"):
        fitted(users={}, return_tensors="tf")


def test_columns_of_different_lengths_cannot_be_records(fitted):
    with pytest.raises(ValueError, match="one length, got: 'age' has 2, 'job' has 1"):
        fitted(users={"age": [1, 2], "job": ["a"]})


def test_fitting_needs_every_column_and_at_least_one_row():
    extractor = FTMambaFeatureExtractor(
        [{"name": "city", "kind": "categorical"}, {"name": "age", "kind": "numeric"}],
        [{"name": "popularity_7d", "kind": "numeric", "popularity_days": 7}],
    )
    items = {"popularity_7d": [1.0, 2.0]}
    with pytest.raises(
        ValueError, match="'city' has no value in the training rows; did you mean 'citty"
    ):
        extractor.fit({"citty": ["a"], "age": [3]}, items)
    with pytest.raises(
        ValueError, match=r"'popularity_7d' has no value .* give the raw popularity"
    ):
        extractor.fit({"city": ["a", "b"], "age": [3, 4]}, [{}])
    with pytest.raises(ValueError, match="'city' has no value in the training rows"):
        extractor.fit({"city": [], "age": [3]}, items)
    with pytest.raises(ValueError, match="not fitted; call fit"):
        extractor(users={"age": 3})


def test_the_schema_is_checked_at_once():
    age = {"name": "age", "kind": "numeric"}
    with pytest.raises(ValueError, match="user column 'age' occurs twice"):
        FTMambaFeatureExtractor([age, age], [])
    with pytest.raises(ValueError, match="no argument 'user_colums'; did you mean 'user_columns'"):
        FTMambaFeatureExtractor(user_colums=[age])
    with pytest.raises(ValueError, match="unknown key 'min_cuont'; did you mean 'min_count'"):
        FTMambaFeatureExtractor([{**age, "min_cuont": 3}], [])


def test_slots_and_scales_of_unknown_columns_are_refused(fitted):
    with pytest.raises(
        ValueError, match="no numeric column of the users is 'agee'; did you mean 'age'"
    ):
        fitted.numeric_slots("user", ["agee"])
    with pytest.raises(
        ValueError, match=r"no numeric column of the users is 'job'; there are: age, income"
    ):
        fitted.encode_numeric("user", "job", np.zeros(1))
    with pytest.raises(ValueError, match="tower must be one of user, item, got 'film'"):
        fitted.columns("film")
