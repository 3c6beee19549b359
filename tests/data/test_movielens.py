"""MovieLens-100K: the same tables from every source, and each source tried in its turn."""

import hashlib
import io
import logging
import subprocess
import zipfile

import numpy as np
import pytest

from ftmamba.data import movielens, movielens_files
from ftmamba.data.movielens import movielens_100k, read_folder, read_official, read_recbole

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


def encoded_files(layout):
    files, encoding = LAYOUTS[layout]
    return {name: text.encode(encoding) for name, text in files.items()}


def archive(layout, prefix):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, data in encoded_files(layout).items():
            zipped.writestr(prefix + name, data)
    return content.getvalue()


@pytest.fixture
def small(monkeypatch):
    """Let the made-up files pass for the real ones."""
    for layout, table in (("official", "OFFICIAL_FILES"), ("recbole", "RECBOLE_FILES")):
        digests = {n: hashlib.sha256(d).hexdigest() for n, d in encoded_files(layout).items()}
        monkeypatch.setattr(movielens, table, digests)
        monkeypatch.setattr(movielens_files, table, digests)


@pytest.fixture(params=LAYOUTS)
def folder(request, tmp_path):
    for name, data in encoded_files(request.param).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def no_network(*args, **kwargs):
    raise OSError("no network")


def no_pip(command, **kwargs):
    return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")


def test_either_layout_gives_these_tables(folder, small):
    tables = movielens_100k(folder)

    assert tables.users.to_pylist() == [
        {"user_id": "1", "age": 24, "gender": "M", "occupation": "technician", "zip_code": "85711"},
        {"user_id": "2", "age": 53, "gender": "F", "occupation": "other", "zip_code": "T8H1N"},
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


def test_the_schema_and_a_threshold_can_be_chosen(folder, small):
    schema = {**movielens.SCHEMA, "users": {"key": "user_id", "columns": {"age": "numeric"}}}

    tables = movielens_100k(folder, schema=schema, positive_threshold=4)

    assert tables.users.column_names == ["user_id", "age"]
    assert tables.interactions.weights.tolist() == [5, 4]


def test_the_official_archive_is_asked_first_and_kept(small, tmp_path, monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(archive("official", "ml-100k/"))

    monkeypatch.setattr(movielens_files.urllib.request, "urlopen", answer)
    monkeypatch.setattr(movielens_files.subprocess, "run", None)

    first, second = (movielens_100k(cache_dir=tmp_path) for _ in range(2))

    assert first.users.equals(second.users)
    assert asked == [("https://files.grouplens.org/datasets/movielens/ml-100k.zip", 5)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["movielens-100k"]


def test_the_wheel_of_recbole_is_the_last_resort(small, tmp_path, monkeypatch):
    def pip(command, **kwargs):
        place = command[command.index("--dest") + 1]
        assert command[-1] == "recbole==1.2.1"
        assert "--no-deps" in command
        content = archive("recbole", "recbole/dataset_example/ml-100k/")
        (movielens_files.Path(place) / "recbole-1.2.1.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(movielens_files.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(movielens_files.subprocess, "run", pip)

    assert movielens_100k(cache_dir=tmp_path).items.num_rows == 3
    assert (tmp_path / "movielens-100k" / "ml-100k.inter").is_file()


def test_without_any_source_every_reason_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens_files.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(movielens_files.subprocess, "run", no_pip)
    with pytest.raises(
        FileNotFoundError, match=r"ml-100k\.zip: no network; pip .*: ERROR: No matching"
    ):
        movielens_100k(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused_wherever_it_comes_from(tmp_path, monkeypatch):
    data = archive("official", "ml-100k/")
    monkeypatch.setattr(
        movielens_files.urllib.request, "urlopen", lambda *_args, **_kwargs: io.BytesIO(data)
    )
    with pytest.raises(ValueError, match=r"file 'u\.data' of MovieLens-100K is damaged: its SHA"):
        movielens_100k(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused(folder):
    with pytest.raises(ValueError, match="is damaged: its SHA-256 must be"):
        movielens_100k(folder)


def test_a_folder_of_neither_layout_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"in neither layout; it needs u\.data, u\.item"):
        read_folder(tmp_path)


def test_the_cache_is_where_the_environment_says(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FTMAMBA_CACHE", str(tmp_path))
    folder = tmp_path / "movielens-100k"
    folder.mkdir()
    for name, data in encoded_files("recbole").items():
        (folder / name).write_bytes(data)

    assert movielens_100k().users.num_rows == 2


def test_the_licence_is_told_once(folder, small, caplog):
    movielens._tell_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        movielens_100k(folder)
        movielens_100k(folder)
    assert [record.message for record in caplog.records].count(movielens.LICENCE) == 1


def test_the_real_tables_are_complete(ml100k):
    events = ml100k.interactions

    assert (len(events), events.n_users, events.n_items) == (100_000, 943, 1682)
    assert np.bincount(events.weights.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert (events.times.min(), events.times.max()) == (874724710, 893286638)
    assert ml100k.item_titles[0] == "Toy Story (1995)"
    assert ml100k.item_record(0)["genres"] == "Animation Children's Comedy"
    assert ml100k.items.column("release_year").null_count == 1
    assert ml100k.user_record(ml100k.user_row(42))["occupation"] == "administrator"


def test_both_readers_agree_on_made_up_files(tmp_path):
    for layout in LAYOUTS:
        for name, data in encoded_files(layout).items():
            (tmp_path / name).write_bytes(data)

    first, second = read_official(tmp_path), read_recbole(tmp_path)

    assert all(a.to_pylist() == b.to_pylist() for a, b in zip(first, second, strict=True))
