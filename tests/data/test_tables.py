"""Three tables in, dense ids out; and every way in which the tables can be wrong."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.tables import load_tables


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_keys_become_row_ids_in_the_order_of_the_file(users, items, events, schema):
    tables = load_tables(users, items, events, schema)
    found = tables.interactions

    assert found.user_ids.tolist() == [0, 2, 0, 1]
    assert found.item_ids.tolist() == [2, 0, 1, 3]
    assert found.times.tolist() == [100, 50, 200, 300]
    assert found.weights.tolist() == [5, 3, 1, 4]
    assert (found.n_users, found.n_items) == (3, 4)
    assert [array.dtype for array in (found.user_ids, found.times, found.weights)] == [
        np.int64,
        np.int64,
        np.float32,
    ]


def test_keys_titles_and_records_are_found_by_row_and_by_key(users, items, events, schema):
    tables = load_tables(users, items, events, schema)

    assert tables.user_keys == ["u1", "u2", "u3"]
    assert tables.item_keys == ["001", "002", "010", "011"]
    assert tables.item_titles == ["One", "Two", "Ten", ""]
    assert (tables.user_row("u3"), tables.item_row("010")) == (2, 2)
    assert tables.user_record(1) == {"user_id": "u2", "age": None, "city": "b"}
    assert tables.item_record(0)["title"] == "One"
    with pytest.raises(ValueError, match="table 'users' has no key 'u33'; did you mean 'u3'"):
        tables.user_row("u33")


def test_files_give_the_same_tables_as_memory(users, items, events, schema, tmp_path):

    paths = []
    for name, table in (("users", users), ("items", items), ("events", events)):
        paths.append(tmp_path / f"{name}.csv")
        pa.csv.write_csv(table, paths[-1])

    from_files, from_memory = load_tables(*paths, schema), load_tables(users, items, events, schema)

    assert from_files.users.equals(from_memory.users)
    assert from_files.items.equals(from_memory.items)
    np.testing.assert_array_equal(from_files.interactions.times, from_memory.interactions.times)


@pytest.mark.parametrize("kind", ["int64", "int32", "float64", "string", "dictionary"])
def test_keys_of_any_type_join(kind, schema):
    texts = {"string": ["7", "5"], "dictionary": ["7", "5"]}
    keys = pa.array(texts.get(kind, [7, 5]))
    keys = keys.dictionary_encode() if kind == "dictionary" else keys.cast(kind)
    schema["users"]["columns"] = {"user_id": "categorical"}
    schema["items"] = {"key": "item_id", "columns": {"item_id": "categorical"}}
    events = {"user_id": [5, 7, 5], "item_id": [7, 7, 5], "time": [1, 2, 3], "rating": [1, 1, 1]}

    tables = load_tables({"user_id": keys}, {"item_id": keys}, events, schema)

    assert tables.user_keys == ["7", "5"]
    assert tables.interactions.user_ids.tolist() == [1, 0, 1]
    assert tables.interactions.item_ids.tolist() == [0, 0, 1]


DAY = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
STAMP = int(DAY.timestamp())


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([STAMP] * 4, "s"),
        ([float(STAMP)] * 4, "s"),
        ([str(STAMP)] * 4, "s"),
        ([STAMP * 1000 + 999] * 4, "ms"),
        ([STAMP * 10**6] * 4, "us"),
        ([STAMP * 10**9] * 4, "ns"),
        (["2020-01-02 03:04:05"] * 4, "s"),
        (["2020-01-02T03:04:05.25Z", "2020-01-02T04:04:05+01:00"] * 2, "s"),
        (pa.array([DAY] * 4, pa.timestamp("ms", "UTC")), "s"),
        (pa.array([DAY.replace(tzinfo=None)] * 4, pa.timestamp("ns")), "s"),
    ],
)
def test_times_of_any_form_become_seconds(users, items, events, schema, times, unit):
    schema["interactions"]["time_unit"] = unit

    tables = load_tables(users, items, with_column(events, "time", times), schema)

    assert tables.interactions.times.tolist() == [STAMP] * 4


def test_dates_begin_at_midnight_and_times_before_1970_are_rounded_down(
    users, items, events, schema
):
    dates = pa.array([datetime.date(1969, 12, 31)] * 4)
    halves = [-0.5, 0.5, 1.5, -1.5]

    assert (
        load_tables(
            users, items, with_column(events, "time", dates), schema
        ).interactions.times.tolist()
        == [-86400] * 4
    )
    assert load_tables(
        users, items, with_column(events, "time", halves), schema
    ).interactions.times.tolist() == [-1, 0, 1, -2]


def test_columns_outside_the_schema_are_dropped_and_time_and_weight_are_optional(
    users, items, events, schema
):
    del schema["interactions"]["time"], schema["interactions"]["weight"]
    users = users.append_column("secret", pa.array([1, 2, 3]))

    tables = load_tables(users, items, events, schema)

    assert tables.users.column_names == ["user_id", "age", "city"]
    assert tables.interactions.times is None
    assert tables.interactions.weights is None


def test_the_schema_is_inferred_where_none_is_given(users, items, events):
    schema = load_tables(users, items, events).schema

    assert (schema.users.key, schema.items.key) == ("user_id", "item_id")


def test_a_threshold_keeps_the_positives(users, items, events, schema):
    tables = load_tables(users, items, events, schema, positive_threshold=4)

    assert tables.interactions.weights.tolist() == [5, 4]
    assert tables.interactions.user_ids.tolist() == [0, 1]


def test_unknown_keys_are_dropped_only_on_demand(users, items, events, schema, caplog):
    events = with_column(events, "user_id", ["u1", "u9", "u1", None])
    with pytest.raises(
        ValueError,
        match=r"2 rows whose 'user_id' is not in table 'users': 'u9' \(row 2\), None \(row 4\); "
        "add them to the tables, or set drop_unknown",
    ):
        load_tables(users, items, events, schema)

    tables = load_tables(users, items, events, schema, drop_unknown=True)

    assert tables.interactions.times.tolist() == [100, 200]
    assert tables.interactions.user_ids.tolist() == [0, 0]
    assert tables.interactions.item_ids.tolist() == [2, 1]
    assert "dropped 2 of 4 interactions" in caplog.text


def test_unknown_users_and_items_are_told_apart_and_three_are_shown(users, items, events, schema):
    events = with_column(events, "item_id", ["a", "b", "c", "d"])
    events = with_column(events, "user_id", ["u1", "u1", "u1", "x"])
    with pytest.raises(
        ValueError,
        match=r"1 rows whose 'user_id' .* 'x' \(row 4\) and 4 rows whose 'item_id' is not in table "
        r"'items': 'a' \(row 1\), 'b' \(row 2\), 'c' \(row 3\); add",
    ):
        load_tables(users, items, events, schema)


def test_nothing_left_after_dropping_is_an_error(users, items, events, schema):
    events = with_column(events, "item_id", ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="table 'interactions' is empty: no row is left"):
        load_tables(users, items, events, schema, drop_unknown=True)


FAULTS = {
    "users": [
        ("city", None, "table 'users' has no column 'city'.*; it has: user_id, age"),
        ("user_id", ["u1", "u2", "u1"], "1 keys occur more than once, the first are 'u1'; keep"),
        ("user_id", ["u1", None, "u3"], "1 rows have no key, the first is row 2"),
        ("age", ["30", "x", "50"], r"'age': row 2 is 'x', which is not a number \(1 such rows\)"),
        ("age", [1.0, 2.0, float("inf")], "'age': row 3 is inf; a number must be finite"),
        ("age", [[1], [2], [3]], "'age': needs numbers, the column holds list"),
        ("city", [["a"], ["b"], ["c"]], "kind 'categorical' needs one value a row.*'categories'"),
    ],
    "items": [
        ("title", None, "table 'items' has no column 'title'"),
        ("genres", [1, 2, 3, 4], None),
    ],
    "events": [
        ("time", None, "table 'interactions' has no column 'time'"),
        ("time", [1, None, 3, 4], "'time': 1 rows have no time, the first is row 2"),
        ("time", [1, 2, 3, STAMP * 1000], "row 4 is .* no time in unit 's'; set time_unit"),
        ("time", ["2020-01-01", "2020-13-01", "2020-01-01", ""], "row 2 is '2020-13-01', which"),
        ("time", ["2020-01-01", "soon", "2020-01-01", ""], "row 2 is 'soon', which is no time"),
        ("rating", [1, 2, None, 4], "'rating': 1 rows have no weight, the first is row 3"),
        ("rating", ["1", "2", "3", "good"], "'rating': row 4 is 'good', which is not a number"),
    ],
}


@pytest.mark.parametrize(
    ("table", "column", "values", "message"),
    [(t, *fault) for t, faults in FAULTS.items() for fault in faults if fault[2]],
)
def test_a_fault_is_named_with_its_place(
    users, items, events, schema, *, table, column, values, message
):
    tables = {"users": users, "items": items, "events": events}
    tables[table] = (
        tables[table].drop_columns(column)
        if values is None
        else with_column(tables[table], column, values)
    )
    with pytest.raises(ValueError, match=message):
        load_tables(*tables.values(), schema)


@pytest.mark.parametrize("empty", ["users", "items", "interactions"])
def test_an_empty_table_is_named(users, items, events, schema, empty):
    tables = {"users": users, "items": items, "interactions": events}
    tables[empty] = tables[empty].slice(0, 0)
    with pytest.raises(ValueError, match=f"table '{empty}' is empty: it has no rows"):
        load_tables(*tables.values(), schema)


def test_a_misspelt_column_suggests_the_near_one(users, items, events, schema):
    schema["users"]["columns"] = {"citty": "categorical"}
    with pytest.raises(
        ValueError,
        match=r"'users' has no column 'citty'; did you mean 'city'\? It has: user_id, age, city",
    ):
        load_tables(users, items, events, schema)


def test_two_columns_of_one_name_are_refused(users, items, events, schema):
    users = users.append_column("age", pa.array([1, 2, 3]))
    with pytest.raises(ValueError, match="table 'users' has two columns 'age'"):
        load_tables(users, items, events, schema)


def test_a_threshold_that_nothing_reaches_or_without_weights_is_refused(
    users, items, events, schema
):
    with pytest.raises(ValueError, match="positive_threshold 9 leaves no interaction: the largest"):
        load_tables(users, items, events, schema, positive_threshold=9)
    del schema["interactions"]["weight"]
    with pytest.raises(ValueError, match="positive_threshold needs a weight"):
        load_tables(users, items, events, schema, positive_threshold=1)


def test_texts_without_a_separator_are_no_set(users, items, events, schema):
    schema["items"]["columns"]["genres"] = "categories"
    with pytest.raises(ValueError, match="give the separator of its members"):
        load_tables(users, items, events, schema)


def with_context(schema, *names):
    history = {"kind": "history", "event_features": ["gap", *names]}
    users = {"key": "user_id", "columns": {"history": history}}
    return {**schema, "users": users}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, None, 4], [1, 2, np.nan, 4]),
        ([0.5, np.nan, -1e30, 0], [0.5, np.nan, -1e30, 0]),
        ([True, False, None, True], [1, 0, np.nan, 1]),
        (["1.5", "", "NA", "-2"], [1.5, np.nan, np.nan, -2]),
        (pa.array([None] * 4, pa.float32()), [np.nan] * 4),
    ],
)
def test_columns_beside_events_are_read_as_numbers(users, items, events, schema, values, expected):
    events = events.append_column("paid", pa.array(values))

    found = load_tables(users, items, events, with_context(schema, "paid")).interactions

    assert set(found.context) == {"paid"}
    assert found.context["paid"].dtype == np.float32
    np.testing.assert_array_equal(found.context["paid"], np.array(expected, np.float32))


def test_only_named_columns_are_read_and_those_with_a_role_may_be(users, items, events, schema):
    found = load_tables(users, items, events, with_context(schema, "rating")).interactions
    assert found.context["rating"].tolist() == found.weights.tolist() == [5, 3, 1, 4]
    assert load_tables(users, items, events, schema).interactions.context == {}


def test_context_keeps_to_the_rows_that_are_kept(users, items, events, schema):
    schema = with_context(schema, "rating")
    events = with_column(events, "user_id", ["u1", "nobody", "u1", "u2"])
    found = load_tables(users, items, events, schema, drop_unknown=True, positive_threshold=2)
    assert found.interactions.context["rating"].tolist() == [5, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, np.inf, 3], "row 3 is inf; a number must be finite, leave it empty"),
        ([1, 2, -np.inf, 3], "row 3 is -inf"),
        ([0, 1e31, 0, 0], r"row 2 is 1e\+31; beside an event a number must be within 1e\+30 of 0"),
        (
            ["1", "two", "3", "four"],
            r"row 2 is 'two', .* \(2 such rows\); correct it, or remove it",
        ),
        (
            [datetime.date(2020, 1, 1)] * 4,
            "holds date32.*; convert it, or remove it from event_fea",
        ),
        ([[1], [2], [3], [4]], "needs numbers, the column holds list"),
    ],
)
def test_a_column_beside_events_that_holds_no_numbers_is_told(
    users, items, events, schema, values, message
):
    events = events.append_column("paid", pa.array(values))
    with pytest.raises(ValueError, match=f"'interactions', column 'paid': .*{message}"):
        load_tables(users, items, events, with_context(schema, "paid"))


@pytest.mark.parametrize(("name", "near"), [("ratign", "rating"), ("gapp", "gap")])
def test_a_column_beside_events_that_is_not_there_is_told_with_the_near_one(
    users, items, events, schema, name, near
):
    message = (
        rf"name {name!r}, which is no column of table 'interactions'; did you mean {near!r}\? "
        "There are: gap, weight, user_id, item_id, time, rating"
    )
    with pytest.raises(ValueError, match=message):
        load_tables(users, items, events, with_context(schema, name))
