"""Every form of file gives the same table; a column becomes its kind; what is wrong is named."""

import datetime
import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset

from ftmamba.data import readers
from ftmamba.data.readers import is_in_order, key_texts, numbers, read_table, typed_column
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

    assert read_table(TABLE) is TABLE
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
                {"id": "01", "mixed": "x", "float": "2.5", "gap": "3"},
            ],
        ),
        ('"user_id", "artist name"\n"a","b, c"\n', [{"user_id": "a", "artist name": "b, c"}]),
        ("\ufeffa,b\n1,2\n", [{"a": "1", "b": "2"}]),
    ],
)
def test_a_csv_keeps_codes_as_they_are_written_and_its_names_are_bare(tmp_path, text, rows):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert read_table(tmp_path / "t.csv").to_pylist() == rows


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
            r"2 of 3 lines do not have the 2 values that its header names: line 3 has 3, line 5 has 1;"
            r" correct them: a value that holds ',' needs quotes around it",
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
