import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from ftmamba.checks import read_tensors
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import SEEN_FILE, known_users, load_known_users


@pytest.fixture
def users():
    table = pa.table({"age": [31, None, 7], "id": ["01", "2", "3x"], "secret": ["a", "b", "c"]})
    pairs = np.array([[2, 4], [0, 3], [2, 1], [0, 3], [2, 0]])
    interactions = Interactions(pairs[:, 0], pairs[:, 1], None, None, n_users=3, n_items=5)
    return known_users(table, interactions, key="id", columns=["age", "not there"])


def with_context(users):
    prices = np.array([1, np.nan, 3, 4, 5], np.float32)
    return dataclasses.replace(users, context={"price": prices})


def items_of(users):
    return [[event.item for event in users.events(row)] for row in range(len(users))]


def test_seen_items_are_those_of_the_interactions_and_only_named_columns_are_kept(users):
    assert items_of(users) == [[3, 3], [], [4, 1, 0]]
    assert users.records.column_names == ["id", "age"]
    assert users.record(1) == {"id": "2", "age": None}


def test_what_is_saved_is_what_is_loaded(users, tmp_path):
    with_context(users).save(tmp_path)
    loaded = load_known_users(tmp_path, key="id", n_items=5)
    assert loaded.records.equals(users.records)
    assert tuple(loaded.keys) == ("01", "2", "3x")
    assert items_of(loaded) == items_of(users)
    prices = [event.context["price"] for row in (0, 2) for event in loaded.events(row)]
    np.testing.assert_array_equal(prices, [1.0, np.nan, 3.0, 4.0, 5.0])


def test_a_file_without_context_is_of_the_version_that_older_readers_know(users, tmp_path):
    def saved(users):
        users.save(tmp_path)
        return read_tensors(tmp_path / SEEN_FILE, dtypes=frozenset(["I64", "F32"]))

    assert saved(users)[0]["format_version"] == "1"
    assert load_known_users(tmp_path, key="id", n_items=5).events(0)[0].context == {}
    metadata, tensors = saved(with_context(users))
    assert metadata["format_version"] == "2"
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    save_file(arrays, tmp_path / SEEN_FILE, {"format_version": "3"})
    with pytest.raises(ValueError, match="has format 3, this ftmamba reads 1 and 2"):
        load_known_users(tmp_path, key="id", n_items=5)


@pytest.mark.parametrize("name", ["users.parquet", "seen.safetensors"])
def test_a_truncated_or_missing_file_is_named(users, tmp_path, name):
    users.save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    for change in (lambda: None, path.unlink):
        change()
        with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
            load_known_users(tmp_path, key="id", n_items=5)


def test_a_column_whose_name_is_no_text_is_named(users, tmp_path):
    users.save(tmp_path)
    path = tmp_path / "users.parquet"
    path.write_bytes(path.read_bytes().replace(b"age", b"a\xf5e"))
    with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
        load_known_users(tmp_path, key="id", n_items=5)


def test_parts_of_two_checkpoints_do_not_fit(users, tmp_path):
    with pytest.raises(ValueError, match="2 known users do not fit"):
        dataclasses.replace(users, records=users.records.slice(1))
    with pytest.raises(ValueError, match=r"5 seen items have \(4,\) times"):
        dataclasses.replace(users, context={"price": np.zeros(4, np.float32)})
    users.save(tmp_path)
    with pytest.raises(ValueError, match="items that the catalogue of 4 has not"):
        load_known_users(tmp_path, key="id", n_items=4)


def test_an_unknown_key_is_refused_with_the_near_one_or_the_remedy(users):
    with pytest.raises(ValueError, match=r"no user '1' .*did you mean '01'\?; give record="):
        users.row("1")
    with pytest.raises(ValueError, match=r"must be text, got 2 \(int\); write user_key='2'"):
        users.row(2)
