"""The schema as a recipe writes it: there and back, and what is refused."""

import pytest
import yaml

from ftmamba.data.schema import Schema
from modeling_ftmamba.configuration_ftmamba import Column


def test_the_recipe_form_and_its_yaml_come_back_as_they_were(schema):
    schema["items"]["popularity_days"] = [1, 30]
    schema["users"]["columns"] |= {
        "city": {"kind": "categorical", "min_count": 5}, "user_id": "categorical"
    }  # fmt: skip
    schema["interactions"] |= {"time_unit": "ms", "order": "pos"}
    parsed = Schema.from_dict(schema)
    assert parsed.to_dict() == schema

    text = parsed.to_yaml(notes=["users.bio is left out: it is free text"])
    assert text.startswith("# users.bio is left out: it is free text\nschema:\n")
    assert Schema.from_dict(yaml.safe_load(text)["schema"]) == parsed

    popularity = tuple(
        Column(f"popularity_{days}d", "numeric", popularity_days=days) for days in (1, 30)
    )
    assert parsed.items.columns[-2:] == parsed.items.popularity_columns == popularity
    assert [column.name for column in parsed.items.raw_columns] == ["genres", "price"]
    assert parsed.users.columns[-1] == Column("user_id", "categorical")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("user", {}, "the schema has an unknown key 'user'; did you mean 'users'"),
        ("items", None, "the schema lacks 'items'"),
        ("users", ["user_id"], r"schema of 'users' must be a mapping .* got \['user_id'\]"),
        ("users.key", None, "schema of 'users' lacks 'key'"),
        ("users.colums", {}, "unknown key 'colums'; did you mean 'columns'"),
        ("users.columns.age", "numerical", "column 'age': kind must be .* did you mean 'numeric'"),
        ("users.columns.age", {"kind": "numeric", "scalling": "none"}, "did you mean 'scaling'"),
        ("users.columns.age", {"kind": "numeric", "popularity_days": 3}, "list the days once"),
        ("users.popularity_days", [7], "popularity_days belongs to 'items'"),
        ("items.columns.seen", "history", "is a history, which users have"),
        ("items.popularity_days", [0], r"must be whole numbers > 0, got \[0\]"),
        ("items.popularity_days", 7, "must be whole numbers > 0, got 7"),
        ("items.columns.popularity_7d", "numeric", "already made by popularity_days"),
        ("users.columns", {}, "schema of 'users' has no columns"),
        ("interactions.usr", "u", "unknown key 'usr'; did you mean 'user'"),
        ("interactions.user", None, "schema of 'interactions' lacks 'user'"),
        ("interactions.item", 3, "interactions.item must be a text, got 3"),
        ("interactions.time", None, "popularity_days needs the time of each interaction"),
        ("interactions.time_unit", "min", "time_unit must be one of s, ms, us, ns, got 'min'"),
    ],
)
def test_a_fault_is_named(schema, path, value, message):
    schema["items"]["popularity_days"] = [7]
    *outer, last = path.split(".")
    section = schema
    for name in outer:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    with pytest.raises(ValueError, match=message):
        Schema.from_dict(schema)
