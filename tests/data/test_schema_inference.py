"""What is guessed from three tables, from CSV the same as from typed files."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from ftmamba.data.readers import read_table
from ftmamba.data.schema import InteractionSchema
from ftmamba.data.schema_inference import infer_schema
from modeling_ftmamba.configuration_ftmamba import Column

N = 60
WORDS = [f"word{row % 7} of text number {row}" for row in range(N)]


@pytest.fixture
def tables():
    generator = np.random.default_rng(0)
    day = datetime.date(2020, 1, 1)
    users = {
        "uid": [f"{row:04d}" for row in range(N)],
        "age": generator.integers(18, 80, N),
        "plan": ["free", "paid", "trial"] * (N // 3),
        "level": [1, 2, 3] * (N // 3),
        "joined": [day + datetime.timedelta(days=row) for row in range(N)],
        "bio": WORDS,
        "phone": [f"x{row}" for row in range(N)],
    }
    items = {
        "item": [f"i{row}" for row in range(N)],
        "Title": [f"Title {row}" for row in range(N)],
        "price": generator.lognormal(size=N),
        "genres": [f"{'ab'[row % 2]}|{'cde'[row % 3]}|{'fghi'[row // 2 % 4]}" for row in range(N)],
        "brand_id": generator.integers(0, 30, N),
    }
    events = {
        "uid": users["uid"],
        "item_key": items["item"],
        "ts": np.arange(N) + 1_600_000_000,
        "rating": generator.integers(1, 6, N),
    }
    return [pa.table(columns) for columns in (users, items, events)]


def test_keys_kinds_title_time_and_weight_are_guessed_from_memory_and_from_csv(tables, tmp_path):
    schema, notes = infer_schema(*tables)

    assert (schema.users.key, schema.items.key, schema.items.title) == ("uid", "item", "Title")
    assert schema.users.columns == (
        Column("age", "numeric"),
        Column("plan", "categorical"),
        Column("level", "categorical"),
        Column("joined", "timestamp"),
    )
    assert schema.items.raw_columns == (
        Column("price", "numeric"),
        Column("genres", "categories", separator="|"),
        Column("brand_id", "categorical"),
    )
    assert [c.popularity_days for c in schema.items.popularity_columns] == [1, 7, 30, 1000]
    assert schema.interactions == InteractionSchema("uid", "item_key", "ts", "rating")
    assert notes == (
        "users.bio is left out: it is free text",
        "users.phone is left out: nearly every row has its own value",
    )

    paths = [tmp_path / f"{name}.csv" for name in ("users", "items", "events")]
    for table, path in zip(tables, paths, strict=True):
        pa.csv.write_csv(table, path)
    assert read_table(paths[0]).schema.field("age").type == pa.string()
    assert infer_schema(*paths) == (schema, notes)


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (10**3, "ms"), (10**6, "us"), (10**9, "ns")])
def test_the_unit_of_a_numeric_time_is_guessed(tables, scale, unit):
    users, items, events = tables
    times = pa.array((np.arange(N) + 1_600_000_000) * scale)

    schema, _ = infer_schema(users, items, events.set_column(2, "ts", times))

    assert schema.interactions.time_unit == unit


def test_a_time_is_found_by_its_values_and_without_one_no_popularity_is_proposed(tables):
    users, items, events = tables
    texts = pa.array([f"2020-01-01 10:00:{row:02d}" for row in range(N)])
    schema, _ = infer_schema(users, items, events.set_column(2, "when", texts))
    assert schema.interactions.time == "when"

    schema, _ = infer_schema(users, items, events.drop_columns("ts"))
    assert schema.interactions.time == ""
    assert schema.items.popularity_columns == ()


def test_lists_are_sets_or_vectors_and_a_table_of_keys_alone_has_its_key(tables):
    users, items, events = tables
    users = users.append_column("tags", pa.array([["a", "b"]] * N))
    users = users.append_column("face", pa.array([[0.5, 1.0]] * N))

    columns = infer_schema(users, items, events)[0].users.columns
    assert columns[-2:] == (Column("tags", "categories"), Column("face", "vector"))

    schema, _ = infer_schema(users.select(["uid"]), items, events)
    assert schema.users.columns == (Column("uid", "categorical"),)


def test_tables_without_a_key_or_rows_are_refused(tables):
    users, items, events = tables
    with pytest.raises(ValueError, match=r"'users' has no column with a value of its own"):
        infer_schema(users.select(["plan"]), items, events)
    with pytest.raises(ValueError, match=r"holds keys of table 'items' \(tried item"):
        infer_schema(users, items, events.drop_columns("item_key"))
    with pytest.raises(ValueError, match="table 'interactions' is empty"):
        infer_schema(users, items, events.slice(0, 0))
