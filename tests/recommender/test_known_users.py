import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from ftmamba.checks import read_tensors
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import (
    SEEN_FILE,
    KnownUsers,
    known_users,
    load_known_users,
)


@pytest.fixture
def users() -> KnownUsers:
    table = pa.table({"age": [31, None, 7], "id": ["01", "2", "3x"], "secret": ["a", "b", "c"]})
    pairs = np.array([[2, 4], [0, 3], [2, 1], [0, 3], [2, 0]])
    interactions = Interactions(pairs[:, 0], pairs[:, 1], None, None, n_users=3, n_items=5)
    return known_users(table, interactions, key="id", columns=["age", "not there"])


def test_seen_items_are_those_of_the_interactions(users: KnownUsers) -> None:
    assert [[one.item for one in users.events(row)] for row in range(3)] == [[3, 3], [], [4, 1, 0]]


def test_only_the_named_columns_are_kept(users: KnownUsers) -> None:
    assert users.records.column_names == ["id", "age"]
    assert users.record(1) == {"id": "2", "age": None}


def test_what_is_saved_is_what_is_loaded(users: KnownUsers, tmp_path: Path) -> None:
    users.save(tmp_path)
    loaded = load_known_users(tmp_path, key="id", n_items=5)
    assert loaded.records.equals(users.records)
    assert loaded.keys == ("01", "2", "3x")
    assert loaded.seen.starts.tolist() == users.seen.starts.tolist()
    assert loaded.seen.item_ids.tolist() == users.seen.item_ids.tolist()


@pytest.mark.parametrize("name", ["users.parquet", "seen.safetensors"])
def test_a_truncated_file_is_named(users: KnownUsers, tmp_path: Path, name: str) -> None:
    users.save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
        load_known_users(tmp_path, key="id", n_items=5)
    path.unlink()
    with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
        load_known_users(tmp_path, key="id", n_items=5)


def test_a_column_whose_name_is_no_text_is_named(users: KnownUsers, tmp_path: Path) -> None:
    users.save(tmp_path)
    path = tmp_path / "users.parquet"
    path.write_bytes(path.read_bytes().replace(b"age", b"a\xf5e"))
    with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
        load_known_users(tmp_path, key="id", n_items=5)


def test_files_of_two_checkpoints_do_not_fit(users: KnownUsers) -> None:
    with pytest.raises(ValueError, match="2 known users do not fit"):
        dataclasses.replace(users, records=users.records.slice(1))


def test_an_unknown_user_is_refused_with_the_near_one(users: KnownUsers) -> None:
    message = r"no user '1' among the 3 known users; did you mean '01'\?; give record="
    with pytest.raises(ValueError, match=message):
        users.row("1")


def test_a_key_that_is_no_text_is_refused_with_the_remedy(users: KnownUsers) -> None:
    with pytest.raises(ValueError, match=r"must be text, got 2 \(int\); write user_key='2'"):
        users.row(2)  # type: ignore[arg-type]


TYPES = frozenset(["I64", "F32"])


def with_context(users: KnownUsers) -> KnownUsers:
    prices = np.array([1, np.nan, 3, 4, 5], np.float32)
    return dataclasses.replace(users, context={"price": prices})


def test_context_is_saved_and_loaded_with_its_events(users: KnownUsers, tmp_path: Path) -> None:
    with_context(users).save(tmp_path)
    loaded = load_known_users(tmp_path, key="id", n_items=5)
    assert [event.item for event in loaded.events(2)] == [4, 1, 0]
    assert [event.context for event in loaded.events(2)] == [
        {"price": 3.0}, {"price": 4.0}, {"price": 5.0},
    ]  # fmt: skip
    first, second = loaded.events(0)
    assert first.context == {"price": 1.0}
    assert np.isnan(second.context["price"])
    assert loaded.events(1) == []


def version_of(folder: Path) -> str:
    return read_tensors(folder / SEEN_FILE, dtypes=TYPES)[0]["format_version"]


def test_a_file_without_context_is_of_the_version_that_older_readers_know(
    users: KnownUsers, tmp_path: Path
) -> None:
    users.save(tmp_path)
    assert version_of(tmp_path) == "1"
    assert [
        event.context for event in load_known_users(tmp_path, key="id", n_items=5).events(0)
    ] == [{}, {}]
    with_context(users).save(tmp_path)
    assert version_of(tmp_path) == "2"
    tensors = read_tensors(tmp_path / SEEN_FILE, dtypes=TYPES)[1]
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    save_file(arrays, tmp_path / SEEN_FILE, {"format_version": "3"})
    with pytest.raises(ValueError, match="has format 3, this ftmamba reads 1 and 2"):
        load_known_users(tmp_path, key="id", n_items=5)


def test_context_of_another_length_is_refused(users: KnownUsers) -> None:
    with pytest.raises(ValueError, match=r"5 seen items have \(4,\) times"):
        dataclasses.replace(users, context={"price": np.zeros(4, np.float32)})


def test_seen_items_beyond_the_catalogue_are_refused(users: KnownUsers, tmp_path: Path) -> None:
    users.save(tmp_path)
    with pytest.raises(ValueError, match="items that the catalogue of 4 has not"):
        load_known_users(tmp_path, key="id", n_items=4)
