"""What a person reads who gave something wrong: thing, rule, value, place, remedy."""

import re
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ftmamba.data.fitting import fit_extractor
from ftmamba.data.readers import read_table
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

TIME = "must be a time between the years 1 and 9999"
WRONG = [
    ("age", "31 years", "must be a finite number, got '31 years'"),
    ("age", float("inf"), "must be a finite number, got inf"),
    ("age", [31], "must be a finite number, got [31]"),
    ("age", 10**400, "must be a finite number, got 1000"),
    ("age", date(2020, 1, 1), "must be a finite number, got datetime.date(2020, 1, 1)"),
    ("job", ["doctor"], "must be a single text, number, true/false or date, got ['doctor']"),
    ("job", {"a": 1}, "must be a single text, number, true/false or date, got {'a': 1}"),
    ("job", b"\xff", "must be a single text, number, true/false or date, got b'\\xff'"),
    ("joined", "yesterday", TIME),
    ("joined", True, TIME),
    ("joined", [5], TIME),
    ("genres", 5, "must be a list of texts, or one text with '|' between its members, got 5"),
    ("genres", [["a"]], "a member must be a single text, number, true/false or date, got ['a']"),
    ("tags", "a|b", "must be a list of texts; to split a text, give the column a separator, got "),
    ("text", [1.0], "must be a vector of 3 finite numbers, got [1.0]"),
    ("text", ["a"], "must be a list of numbers, got ['a']"),
]


@pytest.mark.parametrize("form", ["records", "table"])
@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_a_wrong_value_is_named_by_column_row_and_rule(fitted, name, value, rule, form):
    source = [{name: None}, {name: value}]
    if form == "table" and value != 10**400:
        source = pa.table({name: [None, value]})
    tower = "user" if name in ("age", "job", "joined") else "item"
    message = f"{tower} column '{name}', row 1 (the first is 0): {rule}"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fitted(**{f"{tower}s": source})


def test_a_source_of_no_known_form_or_column_is_refused(fitted):
    with pytest.raises(ValueError, match="no known columns, got: agee; did you mean 'age'"):
        fitted(users={"agee": 3})
    with pytest.raises(
        ValueError, match="item records: no known columns, got: nothing; known are: genres"
    ):
        fitted(items=pa.table({"nothing": [1]}))
    with pytest.raises(ValueError, match=r"users must be a record \(dict\), a list of records"):
        fitted(users="users.csv")
    with pytest.raises(ValueError, match=r"item record, row 1 .*: must be a dict of column name"):
        fitted(items=[{}, 5])
    with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, got 'tf'"):
        fitted(users={}, return_tensors="tf")
    with pytest.raises(ValueError, match="one length, got: 'age' has 2, 'job' has 1"):
        fitted(users={"age": [1, 2], "job": ["a"]})


@pytest.mark.parametrize("value", [pd.Series([31, 2]), np.ones((9, 9))])
def test_a_wrong_value_of_many_lines_is_shown_in_one(fitted, value):
    for users in ([{"age": value}, {}], [{}, value], value):
        with pytest.raises(ValueError, match=r"must be|known") as caught:
            fitted(users=users)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "users",
    [
        {"jobs": "a", "age": 3},
        [{"job": "a"}, {"Jobs": "a", "age": 3}],
        pa.table({"job_": ["a"], "age": [3]}),
        {"age": [3, 4], "jobs": ["a", "b"]},
    ],
)
def test_a_misspelt_column_beside_a_right_one_is_refused(fitted, users):
    with pytest.raises(
        ValueError,
        match=r"got: .ob.*; did you mean 'job'\? Else give it as None; known are: age",
    ):
        fitted(users=users)
    assert len(fitted(users={"job": "a", "jobs": 3, "zip_area": 3, "age_group": "30s", "age": 3}))


def test_a_column_of_periods_is_refused_wherever_it_was_saved(fitted, tmp_path):
    frame = pd.DataFrame({"joined": pd.period_range("2020-01", periods=2, freq="M")})
    table = pa.table(frame)
    bare = table.cast(
        pa.schema([pa.field("joined", "int64", metadata={"x": "pandas.period"})])
    )  # as where pandas' types are not imported
    for source in (frame, table, bare, [{"joined": pd.Period("2020-01")}]):
        with pytest.raises(ValueError, match=r"'joined'.* (must not hold pandas periods|a time)"):
            fitted(users=source)
    for source in (frame, table, bare):
        with pytest.raises(ValueError, match="'joined' must not hold pandas periods; convert it"):
            read_table(source)


def test_fitting_needs_every_column_and_at_least_one_row():
    extractor = FTMambaFeatureExtractor(
        [{"name": "city", "kind": "categorical"}, {"name": "age", "kind": "numeric"}],
        [{"name": "popularity_7d", "kind": "numeric", "popularity_days": 7}],
    )
    items = {"popularity_7d": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"an unknown column, got: citty; did you mean 'city'"):
        fit_extractor(extractor, {"citty": ["a"], "age": [3]}, items)
    with pytest.raises(ValueError, match=r"'popularity_7d' has no value .* the raw popularity"):
        fit_extractor(extractor, {"city": ["a", "b"], "age": [3, 4]}, [{}])
    with pytest.raises(ValueError, match="'city' has no value in the training rows"):
        fit_extractor(extractor, {"city": [], "age": [3]}, items)
    with pytest.raises(ValueError, match="the feature extractor is not fitted"):
        extractor(users={"age": 3})


def test_arguments_are_checked_at_once(fitted):
    age = {"name": "age", "kind": "numeric"}
    with pytest.raises(ValueError, match="user column 'age' occurs twice"):
        FTMambaFeatureExtractor([age, age], [])
    with pytest.raises(TypeError, match="argument 'user_colums'"):
        FTMambaFeatureExtractor(user_colums=[age])
    with pytest.raises(ValueError, match="unknown key 'min_cuont'; did you mean 'min_count'"):
        FTMambaFeatureExtractor([{**age, "min_cuont": 3}], [])
    with pytest.raises(ValueError, match=r"no column 'agee'; did you mean 'age'.; they have: age"):
        fitted.encoder("user", "agee")
    with pytest.raises(ValueError, match="tower must be one of user, item, got 'film'"):
        fitted.columns("film")
