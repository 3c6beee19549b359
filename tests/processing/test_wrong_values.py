"""What a person reads who gave something wrong: thing, rule, value, place, remedy."""

import re
from datetime import date

import pyarrow as pa
import pytest

from ftmamba.data.fitting import fit_extractor
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

TIME = "must be a time between the years 1 and 9999"
WRONG = [
    ("age", "31", "must be a finite number, got '31'"),
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
    with pytest.raises(ValueError, match="no known column, got: agee; did you mean 'age'"):
        fitted(users={"agee": 3})
    with pytest.raises(ValueError, match="the item records have no known column"):
        fitted(items=pa.table({"nothing": [1]}))
    with pytest.raises(ValueError, match=r"users must be a record \(dict\), a list of records"):
        fitted(users="users.csv")
    with pytest.raises(ValueError, match=r"items, row 1 .* a record must be a dict"):
        fitted(items=[{}, 5])
    with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, got 'tf'"):
        fitted(users={}, return_tensors="tf")
    with pytest.raises(ValueError, match="one length, got: 'age' has 2, 'job' has 1"):
        fitted(users={"age": [1, 2], "job": ["a"]})


def test_fitting_needs_every_column_and_at_least_one_row():
    extractor = FTMambaFeatureExtractor(
        [{"name": "city", "kind": "categorical"}, {"name": "age", "kind": "numeric"}],
        [{"name": "popularity_7d", "kind": "numeric", "popularity_days": 7}],
    )
    items = {"popularity_7d": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"'city' has no value .*; did you mean 'citty"):
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
