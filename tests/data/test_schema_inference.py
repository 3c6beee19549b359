"""What is guessed from three tables, from CSV the same as from typed files."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from ftmamba.data.readers import read_table
from ftmamba.data.schema import TIME_UNITS, InteractionSchema
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
        Column("joined", "timestamp"),
        Column("history", "history", max_length=50, event_features=("gap", "weight")),
    )
    assert schema.items.raw_columns == (
        Column("item", "categorical"),
        Column("price", "numeric"),
        Column("genres", "categories", separator="|"),
        Column("brand_id", "categorical"),
    )
    assert [c.popularity_days for c in schema.items.popularity_columns] == [1, 7, 30, 1000]
    assert schema.interactions == InteractionSchema("uid", "item_key", "ts", "rating")
    assert notes == (
        "users.level is left out: it says the same as plan; declare it to read both",
        "users.bio is left out: it is free text; declare it as categories, separator ' ', or add "
        "its embedding",
        "users.phone is left out: nearly every row has its own value; declare it as categorical to "
        "read it anyway",
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

    schema, notes = infer_schema(users, items, events.drop_columns("ts"))
    assert schema.interactions.time == ""
    assert schema.items.popularity_columns == ()
    assert any(
        "so a history is a set; if the file is in order, write order: row" in n for n in notes
    )

    one_day = pa.array(["2020-01-01"] * N)
    schema, notes = infer_schema(users, items, events.set_column(2, "ts", one_day))
    assert schema.interactions.time == ""
    assert "interactions.ts is no time of the schema: all rows have the same one" in notes


def test_lists_are_sets_or_vectors_and_a_table_of_keys_alone_has_its_key(tables):
    users, items, events = tables
    users = users.append_column("tags", pa.array([["a", "b"]] * N))
    users = users.append_column("face", pa.array([[0.5, 1.0]] * N))

    columns = infer_schema(users, items, events)[0].users.columns
    assert columns[-3:-1] == (Column("tags", "categories"), Column("face", "vector"))

    schema, _ = infer_schema(users.select(["uid"]), items.select(["item"]), events)
    assert [column.kind for column in schema.users.columns] == ["history"]
    assert schema.items.raw_columns == (Column("item", "categorical"),)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("pos", np.arange(N) % 5 * 3, "pos"),
        ("pos", np.zeros(N, int), ""),
        ("pos", np.arange(N) % 5 + 0.5, ""),
        ("leg", np.arange(N) % 5, "leg"),
        ("leg", np.arange(N) % 5 + 1, "leg"),
        ("leg", np.arange(N) % 5 + 2, ""),
        ("leg", np.arange(N) % 5 * 3, ""),
    ],
)
def test_an_order_counts_the_interactions_of_each_user(tables, name, values, expected):
    users, items, events = tables
    five_each = pa.array([f"{row // 5:04d}" for row in range(N)])
    events = events.drop_columns("ts").set_column(0, "uid", five_each)
    order = infer_schema(users, items, events.append_column(name, pa.array(values)))[0].interactions
    assert (order.time, order.order) == ("", expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Stars", "Stars"), ("food_rating", "food_rating"), ("userScore", "userScore"), ("qty", "qty"),
     ("Unit price", "")],
)  # fmt: skip
def test_ratings_and_weights_are_found_by_a_word_of_their_names(tables, name, expected):
    users, items, events = tables
    events = events.rename_columns(["uid", "item_key", "ts", name])
    schema, notes = infer_schema(users, items, events)
    assert schema.interactions.weight == expected
    features = ("gap", "weight") if expected else ("gap",)
    assert schema.users.history_column.event_features == features
    assert any(note.startswith(f"interactions.{name} is left out") for note in notes) != bool(
        expected
    )


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("Product name", ["x"] * N, "Product name"),
        ("headline_2", [f"Story of {row}" for row in range(N)], "headline_2"),
        ("headline_2", [f"Story of {row % 9}" for row in range(N)], ""),
        ("headline_2", [f"Story of {row} " * 20 for row in range(N)], ""),
        ("link", [f"https://shop.com/{row}" for row in range(N)], ""),
        ("ean", [f"{row:08d}" for row in range(N)], ""),
    ],
)
def test_a_title_has_a_usual_name_or_is_short_and_each_rows_own(tables, name, values, expected):
    users, items, events = tables
    items = items.drop_columns("Title").append_column(name, pa.array(values))
    assert infer_schema(users, items, events)[0].items.title == expected


def test_whole_numbers_are_codes_unless_they_measure_something(tables):
    users, _, events = tables
    generator, n = np.random.default_rng(0), 5000
    classes = generator.choice(2010, 300, replace=False)
    columns = {
        "item": [f"i{row}" for row in range(n)],
        "sub_class": classes[generator.integers(0, 300, n)],
        "hijos": generator.integers(0, 5, n),
        "asset": classes[generator.geometric(0.02, n).clip(max=300) - 1],
        "height": classes[generator.integers(0, 300, n)],
        "reach": generator.normal(1000, 120, n).round().astype(int),
        "big_id": generator.integers(10**8, 10**9, 300)[generator.integers(0, 300, n)],
        "seen": pa.array([1.0, None] * (n // 2)),
        "same": [7] * n,
    }
    schema, notes = infer_schema(users, pa.table(columns), events)
    kinds = {column.name: column.kind for column in schema.items.raw_columns}
    assert kinds == {
        "item": "categorical", "sub_class": "categorical", "hijos": "categorical",
        "asset": "categorical", "height": "numeric", "reach": "numeric", "big_id": "categorical",
        "seen": "categorical",
    }  # fmt: skip
    assert "items.same is left out: all rows have the same value" in notes


def test_of_a_code_and_its_name_the_name_is_read_and_a_stray_word_among_numbers_is_named(tables):
    users, items, events = tables
    for name, values in (
        ("colour_no", [9, 4, 9] * 20), ("colour_name", ["red", "blue", "red"] * 20),
        ("made", ["1990", "1991", *["1992", "1990"] * 28, "?!", "1991"]),
    ):  # fmt: skip
        items = items.append_column(name, pa.array(values))
    schema, notes = infer_schema(users, items, events)
    assert [c.name for c in schema.items.raw_columns][-2:] == ["colour_name", "made"]
    assert any("items.colour_no is left out: it says the same as colour_name" in n for n in notes)
    assert any("items.made is read as a category, for some values" in n for n in notes)


def test_a_key_of_very_many_values_is_hashed_and_a_history_fits_most_users(tables, monkeypatch):
    users, items, events = tables
    monkeypatch.setattr("ftmamba.data.schema_inference.LARGEST_VOCABULARY", N - 1)
    column = infer_schema(users, items, events)[0].items.columns[0]
    assert (column.max_vocabulary, column.hash_buckets) == (N - 1, 20_000)
    for count, length in ((50, 50), (51, 100), (101, 200), (300, 200)):
        many = pa.concat_tables([events.slice(0, 2)] * count)
        assert infer_schema(users, items, many)[0].users.history_column.max_length == length


def test_of_two_columns_that_hold_keys_the_one_of_the_like_name_is_taken(tables):
    ids = pa.table({"id": np.arange(N)})
    events = pa.table({"item_id": np.arange(N)[::-1].copy(), "user_id": np.arange(N)})
    found = infer_schema(ids, ids, events)[0].interactions
    assert (found.user, found.item) == ("user_id", "item_id")


def test_tables_without_a_key_or_rows_are_refused(tables):
    users, items, events = tables
    with pytest.raises(ValueError, match=r"'users' has no column with a value of its own"):
        infer_schema(users.select(["plan"]), items, events)
    with pytest.raises(ValueError, match=r"holds keys of table 'items' \(tried item"):
        infer_schema(users, items, events.drop_columns("item_key"))
    with pytest.raises(ValueError, match="table 'interactions' is empty"):
        infer_schema(users, items, events.slice(0, 0))


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_times_since_1970_are_told_by_their_size_whatever_their_name_and_unit(tables, unit):
    users, items, events = tables
    times = pa.array([(1_600_000_000 + row) * TIME_UNITS[unit] for row in range(N)])
    for values in (times, times.cast(pa.string())):
        renamed = events.drop_columns("ts").append_column("when", values)
        found = infer_schema(users, items, renamed)[0].interactions
        assert (found.time, found.time_unit) == ("when", unit)
    coded = events.drop_columns("ts").append_column("order_id", times)
    assert infer_schema(users, items, coded)[0].interactions.time == ""


def test_a_note_on_what_is_left_out_is_one_short_line():
    name, n = "a name of a column that nobody would have the patience to read", 60
    rows = range(n)
    free = [f"said {row} and {row * 7} of {row * 13}" for row in rows]
    fields = [{f"field {key}": key for key in range(9)}] * n
    users = {"user_id": [f"u{row}" for row in rows]} | {
        f"{kind} {name}": values
        for kind, values in {
            "free": free, "own": [f"{row}x{row * 7}" for row in rows], "same": ["x"] * n,
            "fields": fields, "empty": [None] * n, "twin": [row % 3 for row in rows],
            "name of twin": [f"n{row % 3}" for row in rows],
        }.items()
    }  # fmt: skip
    events = {
        "user_id": users["user_id"] * 2, "item_id": [f"i{row % 9}" for row in range(2 * n)],
        f"note {name}": [f"{row}y" for row in range(2 * n)],
    }  # fmt: skip
    items = {"item_id": [f"i{row}" for row in range(9)]}
    _, notes = infer_schema(users, items, events)
    assert sum("is left out" in note for note in notes) >= 7
    assert max(map(len, notes)) < 160
