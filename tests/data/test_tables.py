"""Three tables in, dense ids out; and every way in which the tables can be wrong."""

import datetime
import logging

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from ftmamba.data.histories import histories_of
from ftmamba.data.readers import read_table
from ftmamba.data.tables import load_tables
from ftmamba.evaluation.splits import LeaveLastOut


def with_column(table, name, values):
    if name not in table.column_names:
        return table.append_column(name, pa.array(values))
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def with_times(raw, times):
    return {**raw, "interactions": with_column(raw["interactions"], "time", times)}


def test_keys_become_row_ids_in_the_order_of_the_file(raw, schema, tmp_path):
    paths = []
    for name, table in raw.items():
        paths.append(tmp_path / f"{name}.csv")
        pa.csv.write_csv(table, paths[-1])
    from_memory, from_files = load_tables(**raw, schema=schema), load_tables(*paths, schema)

    for tables in (from_memory, from_files):
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
    assert from_files.users.equals(from_memory.users)
    assert from_files.items.equals(from_memory.items)


def test_keys_titles_and_records_are_found_by_row_and_by_key(raw, schema):
    tables = load_tables(**raw, schema=schema)

    assert tables.user_keys == ["u1", "u2", "u3"]
    assert tables.item_keys == ["001", "002", "010", "011"]
    assert tables.item_titles == ["One", "Two", "Ten", ""]
    assert tables.user_row("u3") == 2
    assert tables.user_record(1) == {"user_id": "u2", "age": None, "city": "b"}
    with pytest.raises(ValueError, match="table 'users' has no key 'u33'; did you mean 'u3'"):
        tables.user_row("u33")


@pytest.mark.parametrize("kind", ["int64", "float64", "string", "dictionary"])
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
    ("times", "unit", "expected"),
    [
        ([STAMP] * 4, "s", [STAMP] * 4),
        ([str(STAMP)] * 4, "s", [STAMP] * 4),
        ([STAMP * 1000 + 999] * 4, "ms", [STAMP] * 4),
        ([STAMP * 10**9] * 4, "ns", [STAMP] * 4),
        (["2020-01-02 03:04:05"] * 4, "s", [STAMP] * 4),
        (["2020-01-02T03:04:05.25Z", "2020-01-02T04:04:05+01:00"] * 2, "s", [STAMP] * 4),
        (pa.array([DAY] * 4, pa.timestamp("ms", "UTC")), "s", [STAMP] * 4),
        (pa.array([DAY.replace(tzinfo=None)] * 4, pa.timestamp("ns")), "s", [STAMP] * 4),
        ([datetime.date(1969, 12, 31)] * 4, "s", [-86400] * 4),
        ([-0.5, 0.5, 1.5, -1.5], "s", [-1, 0, 1, -2]),
    ],
)
def test_times_of_any_form_become_whole_seconds(raw, schema, times, unit, expected):
    schema["interactions"]["time_unit"] = unit
    tables = load_tables(**with_times(raw, times), schema=schema)
    assert sorted(tables.interactions.times.tolist()) == sorted(expected)


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([9.9, 9.5, 9.1, 3], "s"),
        ([9900, 9500, 9100, 3000], "ms"),
        ([9_000_003, 9_000_002, 9_000_001, 0], "us"),
        ([f"2020-01-02T03:04:05.{part}Z" for part in (9, 5, 1, 0)], "s"),
        (pa.array([3, 2, 1, 0], pa.timestamp("us")), "s"),
    ],
)
@pytest.mark.parametrize("order", ["", "rank"])
def test_events_of_one_second_are_in_order_of_their_parts_of_it(raw, schema, times, unit, order):
    raw = with_times(raw, times)
    events = raw["interactions"].drop_columns("user_id").append_column("user_id", [["u1"] * 4])
    raw["interactions"] = events.append_column("rank", [[1, 2, 3, 4]])
    schema["interactions"] |= {"time_unit": unit, "order": order}
    tables = load_tables(**raw, schema=schema)
    last = LeaveLastOut().split(tables.interactions)
    keys = [tables.item_keys[part.item_ids[0]] for part in (last.test, last.validation)]
    assert keys == ["010", "001"]  # of the rows 0 and 1
    items = histories_of(tables.interactions).items.item_ids
    assert [tables.item_keys[item] for item in items] == ["011", "002", "001", "010"]


@pytest.mark.parametrize("spelt", [["1.0", "2.0", "10.00", "11.0"], [1.0, 2.0, 10.0, 11.0]])
def test_keys_that_are_one_number_are_one_key_in_both_tables(raw, schema, spelt):
    items = raw["items"].drop_columns("item_id").append_column("item_id", [spelt])
    tables = load_tables(raw["users"], items, raw["interactions"], schema)
    assert tables.item_keys == ["1", "2", "10", "11"]
    assert tables.interactions.item_ids.tolist() == [2, 0, 1, 3]


def test_keys_and_categories_that_are_one_number_are_told(raw, schema, caplog):
    items = raw["items"].drop_columns("item_id")
    items = items.append_column("item_id", [["1.1", "1.10", "10", "11"]])
    with pytest.raises(ValueError, match=r"the first are '1.1' \(texts of one number, such as 1"):
        load_tables(raw["users"], items, raw["interactions"], schema)
    users = raw["users"].drop_columns("city").append_column("city", [["8.5", "8.50", "9"]])
    with caplog.at_level(logging.WARNING):
        load_tables(users, raw["items"], raw["interactions"], schema)
    assert "column 'city': 1 values are written in several ways, such as 8.5;" in caplog.text


def test_a_title_stays_as_it_is_written(raw, schema):
    titles = ["8.50", "True", "1984.0", None]
    raw["items"] = raw["items"].drop_columns("title").append_column("title", [titles])
    assert load_tables(**raw, schema=schema).item_titles == ["8.50", "True", "1984.0", ""]


def test_what_the_schema_does_not_name_is_left_out_and_without_one_it_is_inferred(raw, schema):
    inferred = load_tables(**raw).schema
    assert (inferred.users.key, inferred.items.key) == ("user_id", "item_id")

    del schema["interactions"]["time"], schema["interactions"]["weight"]
    raw["users"] = with_column(raw["users"], "secret", [1, 2, 3])
    tables = load_tables(**raw, schema=schema)
    assert tables.users.column_names == ["user_id", "age", "city"]
    assert tables.interactions.times is tables.interactions.weights is None


def test_a_threshold_keeps_the_positives(raw, schema):
    tables = load_tables(**raw, schema=schema, positive_threshold=4)
    assert tables.interactions.weights.tolist() == [5, 4]
    assert tables.interactions.user_ids.tolist() == [0, 1]

    with pytest.raises(ValueError, match="positive_threshold 9 leaves no interaction: the largest"):
        load_tables(**raw, schema=schema, positive_threshold=9)
    del schema["interactions"]["weight"]
    with pytest.raises(ValueError, match="positive_threshold needs a weight"):
        load_tables(**raw, schema=schema, positive_threshold=1)


def test_unknown_keys_are_dropped_only_on_demand(raw, schema, caplog):
    schema = with_context(schema, "rating")
    raw["interactions"] = with_column(raw["interactions"], "user_id", ["u1", "u9", "u1", None])
    with pytest.raises(ValueError, match=r"2 rows .* 'u9' \(row 2\), None \(row 4\); add them"):
        load_tables(**raw, schema=schema)

    found = load_tables(**raw, schema=schema, drop_unknown=True).interactions
    assert found.times.tolist() == [100, 200]
    assert found.user_ids.tolist() == [0, 0]
    assert found.item_ids.tolist() == [2, 1]
    assert found.context["rating"].tolist() == [5, 1]
    assert "dropped 2 of 4 interactions" in caplog.text

    raw["interactions"] = with_column(raw["interactions"], "item_id", ["a", "b", "c", "d"])
    with pytest.raises(
        ValueError,
        match=r"'user_id' .* 'users': .* and 4 rows whose 'item_id' is not in table 'items': "
        r"'a' \(row 1\), 'b' \(row 2\), 'c' \(row 3\); add",
    ):
        load_tables(**raw, schema=schema)
    with pytest.raises(ValueError, match="table 'interactions' is empty: no row is left"):
        load_tables(**raw, schema=schema, drop_unknown=True)


@pytest.mark.parametrize(
    ("table", "column", "values", "message"),
    [
        ("users", "city", None, "has no column 'city'.*; it has: user_id, age"),
        (
            "users",
            "user_id",
            ["u1", "u2", "u1"],
            "1 keys occur more than once, .* 'u1'; keep one row each, or",
        ),
        ("users", "user_id", ["u1", None, "u3"], "1 rows have no key, the first is row 2"),
        ("users", "user_id", ["u1", "", "u3"], "1 rows have no key, the first is row 2"),
        ("users", "age", ["30", "x", "50"], r"'age': row 2 is 'x', .* \(1 such rows\)"),
        ("users", "age", [1.0, 2.0, float("inf")], "'age': row 3 is inf; a number must be finite"),
        ("users", "age", [[1], [2], [3]], "'age': needs numbers, the column holds list"),
        ("users", "city", [["a"], ["b"], ["c"]], "needs one value a row.*'categories'"),
        ("items", "title", None, "has no column 'title'"),
        ("interactions", "time", None, "has no column 'time'"),
        ("interactions", "time", [1, None, 3, 4], "1 rows have no time, the first is row 2"),
        ("interactions", "time", [1, 2, 3, 10**11 + 1], "row 4 is .* in unit 's'; set time_unit"),
        ("interactions", "time", ["2020-01-01", "2020-13-01", "", ""], "row 2 is '2020-13-01', wh"),
        ("interactions", "time", ["2020-01-01", "soon", "", ""], "row 2 is 'soon', which is no"),
        ("interactions", "rating", [1, 2, None, 4], "1 rows have no weight, the first is row 3"),
    ],
)
def test_a_fault_is_named_with_where_it_is(raw, schema, *, table, column, values, message):
    raw[table] = (
        raw[table].drop_columns(column)
        if values is None
        else with_column(raw[table], column, values)
    )
    with pytest.raises(ValueError, match=f"table '{table}'.*{message}"):
        load_tables(**raw, schema=schema)


def test_no_interactions_are_refused(raw, schema):
    raw["interactions"] = raw["interactions"].slice(0, 0)
    with pytest.raises(ValueError, match="table 'interactions' is empty: it has no rows"):
        load_tables(**raw, schema=schema)


@pytest.mark.parametrize("nothing", [None, "", [], {"user_id": [], "age": []}])
def test_without_a_table_the_users_and_items_are_those_of_the_interactions(raw, nothing, caplog):
    caplog.set_level("INFO")
    tables = load_tables(nothing, raw["items"], raw["interactions"])
    assert tables.users.to_pydict() == {"user_id": ["u1", "u3", "u2"]}
    assert tables.schema.users.key == tables.schema.interactions.user == "user_id"
    assert tables.interactions.user_ids.tolist() == [0, 1, 0, 2]
    assert "users: made from column 'user_id' of the interactions" in caplog.text

    both = load_tables(None, nothing, raw["interactions"])
    assert both.item_keys == ["010", "001", "002", "011"]
    assert both.interactions.item_ids.tolist() == [0, 1, 2, 3]

    declared = {
        "users": {"key": "who", "columns": {"who": "categorical"}},
        "items": {"key": "what", "columns": {"what": "categorical"}},
        "interactions": {"user": "user_id", "item": "item_id"},
    }
    by_schema = load_tables(None, None, raw["interactions"], declared)
    assert by_schema.users.column_names == ["who"]
    assert by_schema.item_keys == both.item_keys


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("order id", "Customer No", "SKU", "price"), ("Customer No", "SKU")),
        (("user_name", "userId", "movie_title", "movieId"), ("userId", "movieId")),
        (("who", "what", "x", "y"), ("who", "what")),
    ],
)
def test_the_columns_of_keys_are_told_by_their_names_else_by_their_order(names, columns):
    events = {name: [f"{name}{row % 3}" for row in range(9)] for name in names}
    schema = load_tables(None, None, events).schema
    assert (schema.interactions.user, schema.interactions.item) == columns


def test_a_file_of_sequences_is_enough(tmp_path):
    (tmp_path / "lists.txt").write_text("b 3 1\na 1\n")
    tables = load_tables(None, None, tmp_path / "lists.txt")
    assert (tables.user_keys, tables.item_keys) == (["b", "a"], ["3", "1"])
    assert tables.interactions.item_ids.tolist() == [0, 1, 1]
    assert tables.interactions.is_ordered


def test_further_tables_are_joined_by_key_and_repeated_keys_give_sets(raw, caplog):
    caplog.set_level("INFO")
    jobs = {"age": [1, 1], "job": ["cook", "cook"], "user_id": ["u3", "u1"]}
    cuisines = {"Who": ["u1", "u3", "u1", "u9"], "cuisine": ["thai", "greek", "greek", "thai"]}
    sources = [raw["users"], jobs, cuisines]

    tables = load_tables(sources, [raw["items"]], raw["interactions"])

    assert tables.users.select(["age", "job", "cuisine"]).to_pydict() == {
        "age": [30, None, 50],
        "job": ["cook", None, "cook"],
        "cuisine": [["thai", "greek"], None, ["greek"]],
    }
    kinds = {column.name: column.kind for column in tables.schema.users.columns}
    assert kinds["cuisine"] == "categories"
    assert "column 'age' of table 'users 2' is left out: the first table has it" in caplog.text
    with pytest.raises(ValueError, match="table 'users 2' has no column that holds keys of"):
        load_tables([raw["users"], {"a": ["x"], "b": ["y"]}], None, raw["interactions"])


def test_two_files_may_be_named_in_one_text(tmp_path):
    texts = {
        "u": "user_id,age\na,31.5\nb,40\n", "more, really": "user_id,height\nb,1.7\na,1.8\n",
        "e": "user_id,item_id\na,x\nb,y\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    first, second, events = (str(tmp_path / f"{name}.csv") for name in texts)
    alone = load_tables(second, None, events)
    assert alone.users.column("height").to_pylist() == [1.7, 1.8]
    (tmp_path / "more.csv").write_text(texts["more, really"])
    both = load_tables(f"{first}, {tmp_path / 'more.csv'}", None, events)
    assert both.users.column("age").to_pylist() == [31.5, 40]
    assert both.users.column("height").to_pylist() == [1.8, 1.7]


MOVIELENS = {
    "users": "1::F::1::10::48067\n2::M::56::16::70072\n",
    "movies": "1::Toy Story: the film (1995)::Animation|Comedy\n3::Café (1996)::Drama\n",
    "ratings": "1::3::5::978300760\n2::1::4::978302109\n2::3::3::978301968\n",
}


def test_the_files_of_movielens_are_read_by_path(tmp_path):
    for name, text in MOVIELENS.items():
        (tmp_path / f"{name}.dat").write_text(text, encoding="latin-1")
    found = load_tables(*(str(tmp_path / f"{name}.dat") for name in MOVIELENS))
    users = read_table(tmp_path / "users.dat")
    assert users.column_names == ["user_id", "gender", "age", "occupation", "zip"]
    assert users.column("zip").to_pylist() == ["48067", "70072"]
    assert found.item_titles == ["Toy Story: the film (1995)", "Café (1996)"]
    genres = read_table(tmp_path / "movies.dat").column("genres")
    assert genres.to_pylist() == ["Animation|Comedy", "Drama"]
    events = found.interactions
    assert events.user_ids.tolist() == [0, 1, 1]
    assert events.item_ids.tolist() == [1, 0, 1]
    assert events.weights.tolist() == [5, 4, 3]
    assert events.times.tolist() == [978300760, 978302109, 978301968]


def test_a_double_colon_at_the_border_of_two_blocks_divides_columns(tmp_path):
    path = tmp_path / "events.dat"
    rows = [f"{row % 97}::{row % 89:03}::{978300760 + row}" for row in range(200_000)]
    path.write_text("user::item::time\n" + "\n".join(rows))
    table = read_table(path)
    assert table.column_names == ["user", "item", "time"]
    found = zip(*(column.to_pylist() for column in table.columns), strict=True)
    assert ["::".join(map(str, row)) for row in found] == rows


def test_a_further_table_of_events_gives_no_set_of_times(raw):
    tags = {
        "item_id": ["001"] * 3,
        "tag": ["x", "y", "x"],
        "at": [1_300_000_000 + i for i in range(3)],
    }
    raw["items"] = [raw["items"], tags]
    items = load_tables(**raw).items
    assert "at" not in items.column_names
    assert items.column("tag").to_pylist() == [["x", "y", "x"], None, None, None]


def test_rows_that_are_equal_in_every_column_count_once_and_so_it_is_logged(raw, schema, caplog):
    twice = pa.concat_tables([raw["interactions"], raw["interactions"].slice(1, 2)])
    raw = {name: pa.concat_tables([table, table.slice(0, 1)]) for name, table in raw.items()}
    raw["interactions"] = twice
    tables = load_tables(**raw, schema=schema)
    assert tables.interactions.user_ids.tolist() == [0, 2, 0, 1]
    assert (tables.interactions.n_users, tables.interactions.n_items) == (3, 4)
    assert (
        "table 'interactions': 2 of 6 rows equal another one in every column, the first is row 5"
        in caplog.text
    )
    assert "table 'users': 1 of 4 rows equal another one" in caplog.text

    ordered = {**schema["interactions"], "order": "row"}
    tables = load_tables(**raw, schema={**schema, "interactions": ordered})
    assert len(tables.interactions) == 6


def test_rows_that_differ_anywhere_are_no_repeats(raw, schema, caplog):
    rows = raw["interactions"].take([0, 0])
    raw["interactions"] = with_column(rows, "note", [None, "x"])
    assert len(load_tables(**raw, schema=schema).interactions) == 2
    assert not caplog.text


@pytest.mark.parametrize(
    ("known", "given", "ids"),
    [
        (["36", "7", "0"], ["0036", "007", "00"], [0, 1, 2]),
        (["0036", "0007"], ["36", "7"], [0, 1]),
        ([36, 7], ["0036", " 7 "], [0, 1]),
        (["0036", "36"], ["0036", "036"], None),
        (["36", "7"], ["36", "036"], None),
        (["36", "7"], ["0036", "036"], None),
    ],
)
def test_keys_that_differ_by_leading_zeros_are_matched_where_only_one_can_be_meant(
    caplog, known, given, ids
):
    events = {"user": given, "item": ["a"] * len(given)}
    users = {"user": known, "kind": ["x"] * len(known)}
    if ids is None:
        with pytest.raises(ValueError, match="rows whose 'user' is not in table 'users': '0"):
            load_tables(users, None, events)
        return
    assert load_tables(users, None, events).interactions.user_ids.tolist() == ids
    assert "are those of table 'users' but for leading zeros" in caplog.text


def test_columns_must_be_there_once_and_sets_need_a_separator(raw, schema):
    schema["items"]["columns"]["genres"] = "categories"
    with pytest.raises(ValueError, match="give the separator of its members"):
        load_tables(**raw, schema=schema)
    schema["users"]["columns"] = {"citty": "categorical"}
    with pytest.raises(ValueError, match=r"did you mean 'city'\? It has: user_id, age, city"):
        load_tables(**raw, schema=schema)
    raw["users"] = raw["users"].append_column("age", pa.array([1, 2, 3]))
    with pytest.raises(ValueError, match="table 'users' has two columns 'age'"):
        load_tables(**raw, schema=schema)


def test_an_order_sorts_events_that_no_time_tells_apart(raw, schema):
    events = with_column(raw["interactions"], "pos", ["10", "0", "9", "0"])
    raw["interactions"] = with_column(events, "time", [100, 50, 100, 300])
    del schema["interactions"]["time"]
    assert not load_tables(**raw, schema=schema).interactions.is_ordered

    schema["interactions"]["order"] = "row"
    found = load_tables(**raw, schema=schema).interactions
    assert (found.is_ordered, found.item_ids.tolist()) == (True, [2, 0, 1, 3])

    schema["interactions"]["order"] = "pos"
    found = load_tables(**raw, schema=schema).interactions
    assert (found.is_ordered, found.item_ids.tolist()) == (True, [0, 3, 1, 2])
    assert found.weights.tolist() == [3, 4, 1, 5]

    raw["interactions"] = with_column(events, "pos", ["10", "0", "", "0"])
    message = "column 'pos': 1 rows have no order, the first is row 3; fill them in, or leave 'o"
    with pytest.raises(ValueError, match=message):
        load_tables(**raw, schema=schema)
    schema["interactions"]["order"] = "poss"
    with pytest.raises(ValueError, match="no column 'poss'; did you mean 'pos'"):
        load_tables(**raw, schema=schema)


def with_context(schema, *names):
    history = {"kind": "history", "event_features": ["gap", *names]}
    users = {"key": "user_id", "columns": {"history": history}}
    return {**schema, "users": users}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, np.nan, -1e30, None], [0.5, np.nan, -1e30, np.nan]),
        ([True, False, None, True], [1, 0, np.nan, 1]),
        (["1.5", "", "NA", "-2"], [1.5, np.nan, np.nan, -2]),
        (pa.array([None] * 4, pa.float32()), [np.nan] * 4),
    ],
)
def test_columns_beside_events_are_read_as_numbers(raw, schema, values, expected):
    raw["interactions"] = with_column(raw["interactions"], "paid", values)
    found = load_tables(**raw, schema=with_context(schema, "paid", "rating")).interactions
    assert set(found.context) == {"paid", "rating"}
    assert found.context["paid"].dtype == np.float32
    np.testing.assert_array_equal(found.context["paid"], np.array(expected, np.float32))
    assert found.context["rating"].tolist() == found.weights.tolist() == [5, 3, 1, 4]
    assert load_tables(**raw, schema=schema).interactions.context == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, -np.inf, 3], "row 3 is -inf; a number must be finite, leave it empty"),
        ([0, 1e31, 0, 0], r"row 2 is 1e\+31; beside an event a number must be within 1e\+30 of 0"),
        (["1", "two", "3", "x"], r"row 2 is 'two', .* \(2 such rows\); correct it, or remove it"),
        (
            [datetime.date(2020, 1, 1)] * 4,
            "holds date32.*; convert it, or remove it from event_fea",
        ),
    ],
)
def test_a_column_beside_events_that_holds_no_numbers_is_named(raw, schema, values, message):
    raw["interactions"] = with_column(raw["interactions"], "paid", values)
    with pytest.raises(ValueError, match=f"'interactions', column 'paid': .*{message}"):
        load_tables(**raw, schema=with_context(schema, "paid"))


def test_a_column_beside_events_that_is_not_there_is_named_with_the_near_one(raw, schema):
    message = r"no column of table 'interactions'; did you mean 'rating'\? There are: gap, weight, "
    with pytest.raises(ValueError, match=message):
        load_tables(**raw, schema=with_context(schema, "ratign"))


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def events_of(n, form="u{},i{},{}"):
    return [form.format(row % 7, row % 5, 1 + row % 4) for row in range(n)]


def test_names_that_stand_again_in_joined_files_are_no_interaction(tmp_path, caplog):
    path, names = tmp_path / "events.csv", "user,item,rating"
    path.write_text(lines(names, *events_of(20), names, "u9,i9,5"))
    tables = load_tables(None, None, path)
    assert "user" not in tables.user_keys
    assert "u9" in tables.user_keys
    assert tables.schema.interactions.weight == "rating"
    assert "1 rows repeat the names of the columns, the first is row 21" in caplog.text


def test_a_file_of_names_alone_is_refused_in_words(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,time\n")
    with pytest.raises(ValueError, match=r"'interactions' is empty: it has no rows"):
        load_tables(None, None, tmp_path / "events.csv")


@pytest.mark.parametrize("n_columns", [2, 3])
def test_a_file_that_begins_with_texts_of_values_is_refused(tmp_path, n_columns):
    rows = [row.rsplit(",", 3 - n_columns)[0] for row in events_of(40)]
    (tmp_path / "events.csv").write_text(lines(*rows))
    with pytest.raises(ValueError, match=r"begins with values, not with the names .*: 'u0', 'i0'"):
        load_tables(None, None, tmp_path / "events.csv")


def test_a_value_that_is_its_columns_name_is_a_value(tmp_path):
    (tmp_path / "events.csv").write_text(lines("user,item", "user,i1", "u2,i1", "u3,i2"))
    assert "user" in load_tables(None, None, tmp_path / "events.csv").user_keys


@pytest.mark.parametrize(
    "two",
    [
        "Ame\u0301lie Am\u00e9lie",
        "i1\u200b i1",
        "i1\u00ad i1\ufeff",
        "\ufb01\u0301 \ufb01\u0301\u200b",
    ],
)
def test_keys_that_look_the_same_and_are_two_are_refused(two):
    one, other = two.split(" ")
    events = {"user": ["a", "b", "c"], "item": [one, other, "x"]}
    for items in (None, {"item": [one, "x"], "year": [1990, 1991]}):
        with pytest.raises(ValueError, match=r"items: the keys .* look the same and are two"):
            load_tables(None, items, events, drop_unknown=True)
    events["item"] = [one, one, "\u00e9t\u00e9"]
    assert len(load_tables(None, None, events).item_keys) == 2


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "users.csv").write_text(lines("user,age,age", "u1,3,4", "u2,5,6"))
    events = {"user": ["u1", "u2"], "item": ["i1", "i2"]}
    with pytest.raises(ValueError, match="table 'users' has two columns 'age'"):
        load_tables(tmp_path / "users.csv", None, events)
