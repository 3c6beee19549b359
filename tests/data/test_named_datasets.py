"""Named data sets: the same tables from every source, and what lies beside sequences is joined."""

import hashlib
import io
import json
import logging
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ftmamba.data import named_datasets
from ftmamba.data.named_datasets import (
    LICENCES,
    NAMED_DATASETS,
    SCHEMA_100K,
    amazon_beauty,
    ml_1m,
    movielens_100k,
)

OFFICIAL = {
    "u.data": "1\t2\t3\t881250949\n2\t1\t5\t891717742\n1\t3\t4\t891717743\n",
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
    "u.item": "\n".join(
        [
            "1|Misérables, Les (1995)|01-Jan-1995||http://x|" + "|".join("0010010000000000000"),
            "2|Tale, A (Conte) (1994) (V)|01-Jan-1995||http://x|" + "|".join("0" * 18 + "1"),
            "3|unknown||||" + "|".join("1" + "0" * 18),
        ]
    ),
}
RECBOLE = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + OFFICIAL["u.data"],
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    + OFFICIAL["u.user"].replace("|", "\t"),
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tMisérables, Les\t1995\tAdventure Comedy\n"
    "2\tTale, A (Conte) (1994)\tV\tWestern\n"
    "3\tunkonwn\tunkonwn\tunknown\n",
}
LAYOUTS = {"official": (OFFICIAL, "latin-1"), "recbole": (RECBOLE, "utf-8")}
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


def encoded_files(layout):
    files, encoding = LAYOUTS[layout]
    return {name: text.encode(encoding) for name, text in files.items()}


@pytest.fixture
def small(monkeypatch):
    """Let the made-up files pass for the real ones."""
    for layout, table in (("official", "OFFICIAL_FILES"), ("recbole", "RECBOLE_FILES")):
        digests = {n: hashlib.sha256(d).hexdigest() for n, d in encoded_files(layout).items()}
        monkeypatch.setattr(named_datasets, table, digests)


@pytest.fixture
def online(monkeypatch):
    """Return a function that puts layouts online, no others; and what was then asked for."""
    asked = []

    def archive(layout, prefix):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as zipped:
            for name, data in encoded_files(layout).items():
                zipped.writestr(prefix + name, data)
        return content.getvalue()

    def serve(*layouts):
        def urlopen(url, timeout):
            asked.append((url, timeout))
            if "official" not in layouts:
                raise OSError("no network")
            return io.BytesIO(archive("official", "ml-100k/"))

        def pip(command, **_):
            asked.append((command[-1], "--no-deps" in command))
            if "recbole" not in layouts:
                return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching")
            wheel = Path(command[command.index("--dest") + 1], "recbole-1.2.1.whl")
            wheel.write_bytes(archive("recbole", "recbole/dataset_example/ml-100k/"))
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(named_datasets.urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(named_datasets.subprocess, "run", pip)
        return asked

    return serve


@pytest.fixture
def folder_of(tmp_path):
    def write(files, *without):
        for name, text in files.items():
            if name not in without:
                (tmp_path / name).write_text(text, "latin-1" if name.endswith("dat") else "utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("layout", LAYOUTS)
def test_either_layout_gives_these_tables(layout, tmp_path, small, monkeypatch):
    folder = tmp_path / "movielens-100k"
    folder.mkdir()
    for name, data in encoded_files(layout).items():
        (folder / name).write_bytes(data)
    monkeypatch.setenv("FTMAMBA_CACHE", str(tmp_path))

    tables = movielens_100k()

    assert [list(user.values()) for user in tables.users.to_pylist()] == [
        ["1", 24, "M", "technician", "85711"],
        ["2", 53, "F", "other", "T8H1N"],
    ]
    assert [list(item.values()) for item in tables.items.to_pylist()] == [
        ["1", "Misérables, Les (1995)", 1995, "Adventure Comedy"],
        ["2", "Tale, A (Conte) (1994) (V)", 1994, "Western"],
        ["3", "unknown", None, "unknown"],
    ]
    assert tables.interactions.user_ids.tolist() == [0, 1, 0]
    assert tables.interactions.item_ids.tolist() == [1, 0, 2]
    assert tables.interactions.times.tolist() == [881250949, 891717742, 891717743]
    assert tables.interactions.weights.tolist() == [3, 5, 4]

    schema = {**SCHEMA_100K, "users": {"key": "user_id", "columns": {"age": "numeric"}}}
    chosen = movielens_100k(folder, schema=schema, positive_threshold=4)
    assert chosen.users.column_names == ["user_id", "age"]
    assert chosen.interactions.weights.tolist() == [5, 4]


OFFICIAL_QUESTION = ("https://files.grouplens.org/datasets/movielens/ml-100k.zip", 5)


@pytest.mark.parametrize(
    ("layouts", "questions"),
    [
        (["official", "recbole"], [OFFICIAL_QUESTION]),
        (["recbole"], [OFFICIAL_QUESTION, ("recbole==1.2.1", True)]),
    ],
)
def test_the_archive_is_asked_first_then_the_wheel_and_the_files_are_kept(
    small, tmp_path, online, layouts, questions
):
    asked = online(*layouts)
    first, second = (movielens_100k(cache_dir=tmp_path) for _ in range(2))
    assert first.users.equals(second.users)
    assert asked == questions
    assert [entry.name for entry in tmp_path.iterdir()] == ["movielens-100k"]


def test_without_any_source_every_reason_is_given_and_nothing_is_left(tmp_path, online):
    online()
    with pytest.raises(FileNotFoundError, match=r"ml-100k\.zip: no network; pip .*: No matching"):
        movielens_100k(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused_wherever_it_comes_from(tmp_path, online):
    online("official")
    with pytest.raises(ValueError, match=r"file 'u\.data' .* is damaged: its SHA-256"):
        movielens_100k(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"in neither layout; it needs u\.data, u\.item"):
        movielens_100k(tmp_path)
    for name, content in encoded_files("official").items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"u\.data' .* is damaged"):
        movielens_100k(tmp_path)


def test_the_real_tables_are_complete(ml100k):
    events = ml100k.interactions

    assert (len(events), events.n_users, events.n_items) == (100_000, 943, 1682)
    assert np.bincount(events.weights.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert (events.times.min(), events.times.max()) == (874724710, 893286638)
    assert ml100k.item_titles[0] == "Toy Story (1995)"
    assert ml100k.items.column("genres")[0].as_py() == "Animation Children's Comedy"
    assert ml100k.items.column("release_year").null_count == 1
    assert ml100k.user_record(ml100k.user_row(42))["occupation"] == "administrator"


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
    assert events.is_ordered
    older = tables.schema.to_dict()
    del older["interactions"]["order"]
    assert ml_1m(folder_of(ML_1M), schema=older).interactions.is_ordered
    with pytest.raises(ValueError, match="positive_threshold needs a weight"):
        ml_1m(folder_of({}), positive_threshold=4)


def test_the_sequences_alone_are_enough(folder_of, caplog):
    for tables in (
        ml_1m(folder_of({"ml-1m.txt": ML_1M["ml-1m.txt"]})),
        amazon_beauty(folder_of(BEAUTY, "Beauty_item2attributes.json")),
    ):
        assert tables.users.column_names == ["user_id"]
        assert tables.items.column_names == ["item_id"]
    assert "neither is used" not in caplog.text


def test_facts_without_the_map_of_ids_are_left_out_with_a_warning(folder_of, caplog):
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
    plain = amazon_beauty(folder_of({}), schema=tables.schema.to_dict())
    assert plain.items.equals(tables.items)


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
        ("sas_to_original_items.txt", "1 2\n3\n", "line 2: must have 2 fields, got 1: '3'"),
        ("Beauty_item2attributes.json", "{", r"must hold a JSON object of item"),
        ("Beauty_item2attributes.json", '{"1": 2}', r"must hold a JSON object of item"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(folder_of, file, text, message):
    load = amazon_beauty if file.startswith("Beauty") else ml_1m
    folder = folder_of({**ML_1M, **BEAUTY, file: text})
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_licence_is_logged_once(folder_of, caplog):
    named_datasets._log_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ml_1m(folder_of(ML_1M))
    assert [record.message for record in caplog.records] == [LICENCES["ml-1m"]]
