"""The schema as a recipe writes it: there and back, and what is refused."""

import pytest
import yaml

from ftmamba.data.schema import Schema
from modeling_ftmamba.configuration_ftmamba import Column


def test_the_recipe_form_comes_back_as_it_was(schema):
    schema["items"]["popularity_days"] = [1, 30]
    schema["users"]["columns"]["city"] = {"kind": "categorical", "min_count": 5}
    schema["interactions"]["time_unit"] = "ms"

    assert Schema.from_dict(schema).to_dict() == schema


def test_yaml_comes_back_as_it_was_and_notes_are_comments(schema):
    parsed = Schema.from_dict(schema)

    text = parsed.to_yaml(notes=["users.bio is left out: it is free text"])

    assert text.startswith("# users.bio is left out: it is free text\nschema:\n")
    assert Schema.from_dict(yaml.safe_load(text)["schema"]) == parsed


def test_popularity_days_become_columns_at_the_end(schema):
    schema["items"]["popularity_days"] = [1, 30]

    items = Schema.from_dict(schema).items

    assert [column.name for column in items.columns] == [
        "genres",
        "price",
        "popularity_1d",
        "popularity_30d",
    ]
    assert items.popularity_columns == (
        Column("popularity_1d", "numeric", popularity_days=1),
        Column("popularity_30d", "numeric", popularity_days=30),
    )


def test_the_key_may_be_a_column(schema):
    schema["users"]["columns"]["user_id"] = "categorical"

    assert Schema.from_dict(schema).users.columns[-1] == Column("user_id", "categorical")


def spoilt(schema, path, value):
    *outer, last = path.split(".")
    place = schema
    for name in outer:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return schema


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("user", {}, "the schema has an unknown key 'user'; did you mean 'users'"),
        ("items", None, "the schema lacks 'items'"),
        ("users", ["user_id"], r"schema of 'users' must be a mapping .* got \['user_id'\]"),
        ("users.key", None, "schema of 'users' lacks 'key'"),
        ("users.colums", {}, "unknown key 'colums'; did you mean 'columns'"),
        ("users.columns.age", "numerical", "column 'age': kind must be .* did you mean 'numeric'"),
        (
            "users.columns.age",
            {"kind": "numeric", "scalling": "none"},
            "'age' has an unknown key 'scalling'; did you mean 'scaling'",
        ),
        (
            "users.columns.age",
            {"kind": "numeric", "popularity_days": 3},
            "'age' sets popularity_days; list the days once",
        ),
        ("users.popularity_days", [7], "popularity_days belongs to 'items'"),
        ("items.popularity_days", [0], r"must be whole numbers > 0, got \[0\]"),
        ("items.popularity_days", 7, "must be whole numbers > 0, got 7"),
        ("users.columns", {}, "schema of 'users' has no columns"),
        ("interactions.usr", "u", "unknown key 'usr'; did you mean 'user'"),
        ("interactions.user", None, "schema of 'interactions' lacks 'user'"),
        ("interactions.item", 3, "interactions.item must be a text, got 3"),
        ("interactions.time_unit", "min", "time_unit must be one of s, ms, us, ns, got 'min'"),
    ],
)
def test_a_fault_is_named(schema, path, value, message):
    with pytest.raises(ValueError, match=message):
        Schema.from_dict(spoilt(schema, path, value))


def test_popularity_needs_a_time(schema):
    schema["items"]["popularity_days"] = [7]
    del schema["interactions"]["time"]
    with pytest.raises(ValueError, match="popularity_days needs the time of each interaction"):
        Schema.from_dict(schema)


def test_a_column_may_not_have_the_name_of_a_popularity_column(schema):
    schema["items"]["popularity_days"] = [7]
    schema["items"]["columns"]["popularity_7d"] = "numeric"
    with pytest.raises(ValueError, match="'popularity_7d' is already made by popularity_days"):
        Schema.from_dict(schema)
