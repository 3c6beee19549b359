"""Sequences in SASRec's form, and what is joined to them where it lies beside them."""

import json
import logging

import pytest

from ftmamba.data import sasrec_file
from ftmamba.data.movielens import NAMED_DATASETS
from ftmamba.data.sasrec_file import amazon_beauty, ml_1m, read_sequences
from ftmamba.evaluation import make_split

ML_1M = {
    "ml-1m.txt": "1 1\n1 2\n1 3\n2 2\n2 2\n2 1\n2 4\n",
    "sas_to_original_users.txt": "1 30\n2 7\n",
    "users.dat": "7::F::1::10::48067\n30::M::56::16::70072-11\n",
    "sas_to_original_items.txt": "1 11\n2 5\n3 900\n4 6\n",
    "movies.dat": "5::Misérables, Les (1995)::Drama|Musical\n6::No year::Action\n"
    "11::Tale, A (Conte) (1994)::Drama\n12::Not in the sequences (1990)::War\n",
}
BEAUTY = {
    "Beauty.txt": "1 1 2 3\n2 3 1\n3 4 4 4 2\n",
    "Beauty_item2attributes.json": json.dumps({"1": [7, 8], "3": [8], "99": [1]}),
}


@pytest.fixture
def folder_of(tmp_path):
    def write(files, *without):
        for name, text in files.items():
            if name not in without:
                (tmp_path / name).write_text(text, "latin-1" if name.endswith("dat") else "utf-8")
        return tmp_path

    return write


def test_both_forms_of_a_file_are_the_same_sequences(tmp_path):
    (tmp_path / "pairs.txt").write_text("b 3\nb 1\na 1\nb 3\n\n")
    (tmp_path / "lines.txt").write_text("b 3 1\r\na  1\nb\t3\n")
    pairs, lines = (read_sequences(tmp_path / name) for name in ("pairs.txt", "lines.txt"))
    assert pairs[:2] == lines[:2] == (["b", "a"], ["3", "1"])
    assert pairs[2].equals(lines[2])
    assert pairs[2].to_pydict() == {
        "user_id": ["b", "b", "a", "b"],
        "item_id": ["3", "1", "1", "3"],
    }


def test_ml_1m_joins_people_and_films(folder_of):
    tables = ml_1m(folder_of(ML_1M))
    assert [list(user.values()) for user in tables.users.to_pylist()] == [
        ["1", "M", "56", "16", "70072-11"],
        ["2", "F", "1", "10", "48067"],
    ]
    assert [list(item.values()) for item in tables.items.to_pylist()] == [
        ["1", "Tale, A (Conte) (1994)", 1994, "Drama"],
        ["2", "Misérables, Les (1995)", 1995, "Drama|Musical"],
        ["3", None, None, None],
        ["4", "No year", None, "Action"],
    ]
    assert tables.item_titles[1] == "Misérables, Les (1995)"
    events = tables.interactions
    assert events.user_ids.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert events.item_ids.tolist() == [0, 1, 2, 1, 1, 0, 3]
    assert events.times is events.weights is None


def test_the_sequences_alone_are_enough(folder_of, caplog):
    tables = ml_1m(folder_of({"ml-1m.txt": ML_1M["ml-1m.txt"]}))
    assert tables.users.column_names == ["user_id"]
    assert tables.items.column_names == ["item_id"]
    assert "neither is used" not in caplog.text


def test_facts_without_the_map_of_ids_are_left_out_and_that_is_told(folder_of, caplog):
    with caplog.at_level(logging.WARNING):
        tables = ml_1m(folder_of(ML_1M, "sas_to_original_users.txt"))
    assert tables.users.column_names == ["user_id"]
    assert "genres" in tables.items.column_names
    assert "holds users.dat but not sas_to_original_users.txt, so neither is used" in caplog.text


def test_beauty_joins_the_attributes_of_items(folder_of):
    tables = amazon_beauty(folder_of(BEAUTY))
    assert tables.items.to_pylist() == [
        {"item_id": "1", "attributes": "7 8"},
        {"item_id": "2", "attributes": None},
        {"item_id": "3", "attributes": "8"},
        {"item_id": "4", "attributes": None},
    ]
    split = make_split("leave-last-out").split(tables.interactions)
    assert (split.validation.item_ids.tolist(), split.test.item_ids.tolist()) == ([1, 3], [2, 1])
    plain = amazon_beauty(folder_of({}), schema=tables.schema.to_dict())
    assert plain.items.equals(tables.items)


def test_beauty_without_attributes_has_its_keys(folder_of):
    tables = amazon_beauty(folder_of(BEAUTY, "Beauty_item2attributes.json"))
    assert tables.items.column_names == ["item_id"]


@pytest.mark.parametrize("name", ["ml-1m", "amazon-beauty"])
def test_a_folder_must_be_named_and_hold_the_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not downloaded .* data.folder"):
        NAMED_DATASETS[name](None, None)
    with pytest.raises(FileNotFoundError, match=rf"holds no .*\.txt.*'{name}'; name another"):
        NAMED_DATASETS[name](tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ml-1m.txt", "1 1\n2\n", r"line 2: a user must be followed by .* got '2' alone"),
        ("ml-1m.txt", "\n", "is empty; each line must hold a user and its items"),
        ("users.dat", "7::F::1\n", r"users.dat', line 1: must have 5 fields, got 3: '7::F::1'"),
        ("movies.dat", "5::A::B::C\n", "movies.dat', line 1: must have 3 fields, got 4"),
        ("sas_to_original_items.txt", "1 2\n3\n", "line 2: must have 2 fields, got 1: '3'"),
    ],
)
def test_a_spoilt_file_is_refused_with_its_line(folder_of, file, text, message):
    folder = folder_of({**ML_1M, file: text})
    with pytest.raises(ValueError, match=message):
        ml_1m(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"1": 2}'])
def test_spoilt_attributes_are_refused(folder_of, text):
    folder = folder_of({**BEAUTY, "Beauty_item2attributes.json": text})
    with pytest.raises(ValueError, match=r"attributes.json' must hold a JSON object of item"):
        amazon_beauty(folder)


def test_a_threshold_is_refused_for_there_are_no_ratings(folder_of):
    with pytest.raises(ValueError, match="positive_threshold needs a weight"):
        ml_1m(folder_of(ML_1M), positive_threshold=4)


def test_the_licence_of_movielens_is_told(folder_of, caplog):
    sasrec_file._tell_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        ml_1m(folder_of(ML_1M))
    assert [record.message for record in caplog.records] == [sasrec_file.ML_1M_LICENCE]
