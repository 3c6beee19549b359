"""Every form of file gives the same table; a column becomes its kind; what is wrong is named."""

import datetime
import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from ftmamba.data import readers
from ftmamba.data.readers import (
    is_in_order,
    key_texts,
    numbers,
    parse_moments,
    read_table,
    typed_column,
)
from ftmamba.data.schema import TIME_UNITS
from modeling_ftmamba.configuration_ftmamba import Column

TABLE = pa.table({"key": ["001", "002", None], "place": ["none", "None", 'two\n"lines"']})
ROWS = TABLE.to_pylist()


def write_csv(path, delimiter=",", opened=open):
    text = delimiter.join(["key", "place"]) + "\n"
    text += f"001{delimiter}none\n002{delimiter}None\n{delimiter}" + '"two\n""lines"""\n'
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)


WRITERS = {
    "t.csv": write_csv,
    "t.tsv": lambda path: write_csv(path, "\t"),
    "semicolon.csv": lambda path: write_csv(path, ";"),
    "t.csv.gz": lambda path: write_csv(path, ",", gzip.open),
    "t.parquet": lambda path: pa.parquet.write_table(TABLE, path),
    "t.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "t.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "t.arrow": lambda path: pa.feather.write_feather(TABLE, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)

    assert read_table(tmp_path / name).to_pylist() == ROWS
    assert read_table(str(tmp_path / name)).to_pylist() == ROWS


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.parquet file"):
        read_table(tmp_path)
    for part in range(2):
        pa.parquet.write_table(TABLE.slice(part, 1), tmp_path / f"part-{part}.parquet")
    assert read_table(tmp_path).to_pylist() == ROWS[:2]


def test_tables_in_memory_are_read_as_they_are():
    dataset = Dataset(TABLE)

    assert read_table(TABLE) == TABLE
    assert read_table(dataset).to_pylist() == ROWS
    assert read_table(dataset.select([1, 0])).to_pylist() == [ROWS[1], ROWS[0]]
    assert read_table({"a": [1, 2]}).to_pylist() == [{"a": 1}, {"a": 2}]


def test_records_and_frames_are_tables_and_a_named_index_is_a_column():
    assert read_table([{"a": 1}, {"b": "x", "a": 2}]).to_pylist() == [
        {"a": 1, "b": None},
        {"a": 2, "b": "x"},
    ]
    frame = pd.DataFrame(ROWS)
    assert read_table(frame[1:]).to_pylist() == ROWS[1:]
    assert read_table(frame.set_index("key")).to_pylist() == [
        {"place": row["place"], "key": row["key"]} for row in ROWS
    ]
    mixed = [{"zip": 85711}, {"zip": "T8H1N"}, {}]
    for source in (mixed, pd.DataFrame(mixed)):
        assert read_table(source).column("zip").to_pylist() == ["85711", "T8H1N", None]
    with pytest.raises(ValueError, match=r"column 'a', row 1 .* must be a single text"):
        read_table([{"a": 1}, {"a": {"b": 1}}])

    class Polars:
        def __arrow_c_stream__(self, schema=None):
            return TABLE.__arrow_c_stream__(schema)

    assert read_table(Polars()).to_pylist() == ROWS
    with pytest.raises(ValueError, match="must be a path or a table in memory, got int"):
        read_table(5)


def test_both_forms_of_a_file_are_the_same_sequences_in_order(tmp_path):
    (tmp_path / "pairs.txt").write_text("b 3\nb 1\na 1\nb 3\n\n")
    (tmp_path / "lines.inter").write_text("b 3 1\r\na  1\nb\t3\n")
    pairs, lines = (read_table(tmp_path / name) for name in ("pairs.txt", "lines.inter"))
    assert pairs.equals(lines)
    assert pairs.to_pydict() == {"user_id": ["b", "b", "a", "b"], "item_id": ["3", "1", "1", "3"]}
    assert is_in_order(pairs)
    assert not is_in_order(TABLE)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            "id,mixed,float,gap\n0108,1.0,1.0,\n01,x,2.5,3.0\n",
            [
                {"id": "0108", "mixed": "1.0", "float": "1.0", "gap": None},
                {"id": "01", "mixed": "x", "float": "2.5", "gap": "3.0"},
            ],
        ),
        ('"user_id", "artist name"\n"a","b, c"\n', [{"user_id": "a", "artist name": "b, c"}]),
        ("\ufeffa,b\n1,2\n", [{"a": "1", "b": "2"}]),
    ],
)
def test_a_csv_keeps_codes_as_they_are_written_and_its_names_are_bare(tmp_path, text, rows):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert read_table(tmp_path / "t.csv").to_pylist() == rows


LETTERS = {
    "utf-16": "Åsa",
    "utf-16-le": "Åsa",
    "utf-16-be": "Åsa",
    "utf-8-sig": "Åsa",
    "cp1252": "Peñón € 3",
    "cp1251": "Война и мир",
    "shift_jis": "千と千尋の神隠し",
}


@pytest.mark.parametrize("encoding", LETTERS)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_an_encoding_is_found_out_and_one_that_is_guessed_is_logged(
    tmp_path, caplog, encoding, suffix
):
    path, row = tmp_path / f"t{suffix}", f"1;{LETTERS[encoding]}\n"
    content = ("id;name\n" + row * 20).encode(encoding)
    path.write_bytes(gzip.compress(content) if suffix == ".csv.gz" else content)
    assert read_table(path).to_pylist() == [{"id": "1", "name": LETTERS[encoding]}] * 20
    assert ("save it as UTF-8 if that is wrong" in caplog.text) == ("utf" not in encoding)


def test_lines_of_utf_8_in_a_latin_file_are_read_as_such(tmp_path):
    (tmp_path / "t.csv").write_bytes("a\nCafé\n".encode("latin-1") + "Rincón\n".encode())
    assert read_table(tmp_path / "t.csv").column("a").to_pylist() == ["Café", "Rincón"]


def records(*names):
    return lambda *rows: [dict(zip(names, row, strict=True)) for row in rows]


AB, EVENTS = records("a", "b"), records("user_id", "item_id", "rating", "timestamp")


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("t.csv", '"a;x";b\n1;2\n', [{"a;x": "1", "b": "2"}]),
        ("t.csv", "sep=|\na|b\n1|2\n", AB("12")),
        ("t.csv", "a,b\r1,2\r3,4\r", AB("12", "34")),
        ("t.csv", '"a","b"\n"x \\"y\\", z","2"\n', AB(('x "y", z', "2"))),
        ("t.tsv", 'a\tb\n1\t"Rome\n2\t5" pipe\n3\tx\n', AB(("1", '"Rome'), ("2", '5" pipe'), "3x")),
        ("t.csv", ",a,b,\n0,1,2,\n", AB("12")),
        ("t.txt", "a b\n1 2\n", AB("12")),
        ("t.txt", "a,b\n1,2\n", AB("12")),
        ("t.inter", "a:token\tb:float\n1\t2\n", AB("12")),
        ("u.data", "6\t2\t3\t881250949\n" * 2, EVENTS(("6", "2", "3", "881250949")) * 2),
        ("t.csv", "A3,007,5.5,2013-05-28\n", EVENTS(("A3", "007", "5.5", "2013-05-28"))),
        ("t.csv", "A,7\nB,8\n", records("user_id", "item_id")("A7", "B8")),
    ],
)  # fmt: skip
def test_tables_of_many_programs_are_read(tmp_path, name, text, rows):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_table(tmp_path / name).to_pylist() == rows


def test_a_few_ragged_rows_are_left_out_and_named(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 300 + "1,2,3\n4\n")
    assert read_table(tmp_path / "t.csv").num_rows == 300
    assert "2 of 302 rows do not have the 2 values" in caplog.text
    assert "row 301 is 1,2,3, row 302 is 4; they are left out" in caplog.text


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([" x ", "?", "NaN", "nan", "null", "-", "", "N/A", "y\u00a0"], ["x", *[None] * 7, "y"]),
        (["none", "None"], ["none", "None"]),
        (["NA", "red", "blue"], [None, "red", "blue"]),
        (["NA", "DE", "FR"], ["NA", "DE", "FR"]),
        (["Y", "no", "TRUE", "?", "0"], [True, False, True, None, False]),
        (["ja", "Nein"], [True, False]),
        (["f", "f"], ["f", "f"]),
        (["1", "0"], ["1", "0"]),
        (["y", "n", "maybe"], ["y", "n", "maybe"]),
        (["['a', \"b's\"]", "[]", None, '["c, d"]'], [["a", "b's"], [], None, ["c, d"]]),
        (["[1, 2]", "[3]"], ["[1, 2]", "[3]"]),
    ],
)
def test_texts_are_tidied_by_column(texts, expected):
    assert read_table({"c": texts}).column("c").to_pylist() == expected
    encoded = pa.table({"c": pa.array(texts).dictionary_encode()})
    assert read_table(encoded).column("c").to_pylist() == expected


def test_a_hub_data_set_is_loaded_by_name_config_and_split(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return Dataset(TABLE)

    monkeypatch.setattr(readers, "load_dataset", load)

    for name in ("some/data", "some/data:users", "some/data:users/test"):
        assert read_table(name).to_pylist() == ROWS
    assert asked == [
        ("some/data", None, None),
        ("some/data", "users", None),
        ("some/data", "users", "test"),
    ]


def test_splits_of_a_hub_data_set_that_are_not_read_are_named(monkeypatch, caplog):
    parts = DatasetDict({"train": Dataset(TABLE, fingerprint="a"), "test": None})
    monkeypatch.setattr(readers, "load_dataset", lambda *_, **__: parts)
    assert read_table("some/data").to_pylist() == ROWS
    assert "its split train is read, not test; name another as 'some/data:default/test'" in (
        caplog.text
    )


def test_a_missing_file_or_folder_is_named_with_the_near_one(tmp_path):
    write_csv(tmp_path / "users.csv")
    with pytest.raises(FileNotFoundError, match=r"user\.csv' does not exist .*mean '.*users\.csv'"):
        read_table(tmp_path / "user.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        read_table(tmp_path / "nowhere" / "users.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty; its first line must name the columns"),
        (
            "t.csv",
            b"a,b\n1,2\n1,2,3\n\n4\n",
            r"2 of 3 rows do not have the 2 values that the header names: row 2 is 1,2,3, row 3 is "
            r"4; correct them: a value that holds ',' needs quotes around it",
        ),
        (
            "t.csv",
            b"1,2,u,v\n",
            "begins with values, not with the names of its columns; add a first",
        ),
        ("t.parquet", b"no parquet", "cannot be read as parquet"),
        ("t.jsonl", b"{", "cannot be read as jsonl"),
        ("t.json", b"[{", "cannot be read as json"),
        ("t.xlsx", b"PK", r"has the form '\.xlsx', .* convert it to one of: \.csv"),
        ("t", b"x", "has the form 'of no suffix'"),
    ],
)
def test_a_file_that_is_no_table_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def typed(values, kind, **options):
    values = pa.chunked_array([values])
    return typed_column(values, Column("c", kind, **options), "users")


def test_texts_become_numbers_and_their_words_for_nothing_become_missing():
    texts = [" 1", "+2.5", "-3e2", ".5", "", "NA", "nan", "NULL", "None", None]
    found = numbers(pa.chunked_array([texts[:4], texts[4:]]), "c", "users")
    assert found.to_pylist() == [1, 2.5, -300, 0.5, *[None] * 6]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1303,95", "2", "-0,5", "?"], [1303.95, 2, -0.5, None]),
        (["1.303,95 €", "€ 12,50", "1.234"], [1303.95, 12.5, 1234]),
        (["$1,234.50", "-$4", "1e3"], [1234.5, -4, 1000]),
        (["12 %", "5.5%"], [12, 5.5]),
        (["1,234", "5"], [1234, 5]),
        (["0,123", "1,234"], [0.123, 1.234]),
        (["1 234,5", "1\u00a0234"], [1234.5, 1234]),
        (["1'234.50", "1,00,000"], [1234.5, 100_000]),
        (["1.234.567", "12"], [1_234_567, 12]),
        (["EUR 5.20", "7 kr"], [5.2, 7]),
        (["\u22123", "-"], [-3, None]),
    ],
)
def test_numbers_are_read_as_the_column_writes_them(texts, expected):
    assert numbers(pa.chunked_array([texts]), "c", "users").to_pylist() == expected


@pytest.mark.parametrize(
    ("texts", "row"),
    [(["3,75", "12.5"], "row 2 is '12.5'"), (["1", "13.09.2020"], "row 2"), (["12 34"], "row 1")],
)
def test_a_text_that_is_no_number_of_its_column_is_named(texts, row):
    with pytest.raises(ValueError, match=row):
        numbers(pa.chunked_array([texts]), "c", "users")


@pytest.mark.parametrize(
    "texts",
    [
        ["09/13/2020 12:26", "02/01/2020 00:00"],
        ["13/09/2020 12:26", "01/02/2020 00:00"],
        ["13.09.2020 12:26", "1.2.2020 00:00"],
        ["2020-09-13T12:26Z", "2020-02-01T01:00:00+01:00"],
        ["2020-09-13 12:26:00 UTC", "2020-02-01 00:00:00 UTC"],
        ["9/13/2020 12:26:00 PM", "2/1/2020 12:00:00 AM"],
        ["13 Sep 2020 12:26", "01 Feb 2020 00:00"],
        ["Sun Sep 13 12:26:00 +0000 2020", "Sat Feb 01 00:00:00 +0000 2020"],
        ["13.09.20 12:26", "01.02.20 00:00"],
        ["2020-9-13 12:26", "2020-2-1 00:00"],
    ],
)
def test_dates_are_read_as_the_column_writes_them(texts):
    moments = typed([*texts, "?"], "timestamp").to_pylist()
    assert moments[2] is None
    assert [moment.isoformat() for moment in moments[:2]] == [
        "2020-09-13T12:26:00+00:00",
        "2020-02-01T00:00:00+00:00",
    ]


@pytest.mark.parametrize(
    ("text", "day", "is_logged"),
    [
        ("01/02/2020", 2, True),
        ("01.02.2020", 1, False),
        ("01-02-2020", 1, True),
        ("20200201", 1, False),
    ],
)
def test_where_day_and_month_could_be_either_the_sign_between_them_decides(
    caplog, text, day, is_logged
):
    assert parse_moments(pa.chunked_array([[text]]))[0].as_py().day == day
    assert ("write 2024-01-31 to be sure" in caplog.text) == is_logged


@pytest.mark.parametrize("text", ["abc", "1.5", "192.168.1.1", "3.10.2", "12", "May", "2020"])
def test_what_only_looks_like_a_date_is_none(text):
    assert parse_moments(pa.chunked_array([[text, text]])) is None


def test_a_text_that_is_no_date_of_its_column_is_named():
    with pytest.raises(ValueError, match="row 2 is 'soon', which is no time; write 2024-01-31"):
        typed(["13.09.2020", "soon", "1.1.2020"], "timestamp")


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_the_unit_of_times_since_1970_is_told_by_their_size(unit):
    times = [1_600_000_000 * TIME_UNITS[unit], -86_400 * TIME_UNITS[unit]]
    assert typed(times, "timestamp").to_pylist() == [1_600_000_000, -86_400]
    assert typed(list(map(str, times)), "timestamp").to_pylist() == [1_600_000_000, -86_400]


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        (["1", "2", ""], [1, 2, None], pa.int64()),
        ([1.0, 2.0], [1, 2], pa.int64()),
        ([1.5, float("nan")], [1.5, None], pa.float64()),
        ([True, None, False], [1, None, 0], pa.int64()),
        (pa.nulls(2), [None, None], pa.float64()),
        (["", "NA"], [None, None], pa.float64()),
    ],
)
def test_numbers_are_whole_where_all_are_and_missing_ones_are_null(values, expected, kind):
    found = typed(values, "numeric")
    assert found.to_pylist() == expected
    assert found.type == kind


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ([5.0, 6.5, None], ["5", "6.5", None]),
        ([5, None], ["5", None]),
        (["005", "", None], ["005", None, None]),
        ([True, False], ["true", "false"]),
        ([datetime.date(2020, 1, 2)], ["2020-01-02"]),
    ],
)
def test_keys_are_texts_as_those_of_a_record(keys, texts):
    assert key_texts(pa.chunked_array([keys])).to_pylist() == texts
    encoded = pa.chunked_array([pa.array(keys).dictionary_encode()])
    assert key_texts(encoded).to_pylist() == texts


@pytest.mark.parametrize(
    ("texts", "separator"),
    [(["[0.5, 1]", "[2,3]"], ""), (["(0.5;1)", " 2  3 "], ""), (["0.5_1", "2_3"], "_")],
)
def test_vectors_are_read_from_texts(texts, separator):
    assert typed(texts, "vector", separator=separator).to_pylist() == [[0.5, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], None, [3.0]], "row 3 has 1 numbers, the first row with a vector has 2"),
        (["a b"], "column 'c': a text is no list of numbers"),
        ([["a"]], "kind 'vector' needs lists of numbers"),
    ],
)
def test_vectors_of_words_or_of_different_lengths_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        typed(values, "vector")


def test_sets_may_be_lists_or_separated_texts_and_moments_texts_or_seconds():
    assert typed([["a"], None], "categories").to_pylist() == [["a"], None]
    assert typed(["a|b", None], "categories", separator="|").to_pylist() == ["a|b", None]
    assert typed(["86400", ""], "timestamp").to_pylist() == [86400, None]
    (moment,) = typed(["1970-01-02"], "timestamp").to_pylist()
    assert moment.timestamp() == 86400
