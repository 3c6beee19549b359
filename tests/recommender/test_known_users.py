import dataclasses
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from ftmamba.checks import read_tensors
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import SEEN_FILE, USERS_FILE, known_users, load_known_users


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
    with pytest.raises(ValueError, match=r"no user \['2'\] among"):
        users.row(["2"])


@pytest.mark.parametrize("key", ["2", 2, 2.0, "2.0", np.int64(2), b"2", Decimal("2.00")])
def test_a_key_has_one_meaning_whatever_its_type(users, key):
    assert users.row(key) == 1


@pytest.mark.parametrize("times", [1, 3000])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_every_type_of_a_column_comes_back(tmp_path, compression, times):
    noon = datetime(2020, 1, 10, 12, tzinfo=UTC)
    table = pa.table({
        "id": pa.array([str(row) for row in range(3 * times)]),
        "tags": pa.array([["a", None], None, []] * times, pa.list_(pa.string())),
        "large": pa.array([["a"], ["b", "a"], None] * times, pa.large_list(pa.large_string())),
        "vector": pa.array([[1.5, 2], [3, 4], [5, 6]] * times, pa.list_(pa.float32(), 2)),
        "kind": pa.array(["x", None, "y"] * times).dictionary_encode(),
        "price": pa.array([Decimal("3.00"), None, Decimal("8.50")] * times),
        "since": pa.array([noon, None, noon] * times, pa.timestamp("us", "UTC")),
        "raw": pa.array([b"\xff", b"", None] * times),
        "is_new": pa.array([True, None, False] * times),
        "both": pa.array([{"a": "x", "b": ["y"]}, None, {"a": None, "b": None}] * times),
        "none": pa.array([None] * 3 * times, pa.string()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / USERS_FILE, compression=compression)
    no_items = {"starts": np.zeros(3 * times + 1, np.int64), "item_ids": np.zeros(0, np.int64)}
    save_file(no_items, tmp_path / SEEN_FILE, {"format_version": "1"})
    assert load_known_users(tmp_path, key="id", n_items=1).records.equals(table)


def bomb(folder, column, **options):
    """Write a file of users, some kilobytes long, with one column."""
    n_users = len(column)
    no_items = {"starts": np.zeros(n_users + 1, np.int64), "item_ids": np.zeros(0, np.int64)}
    save_file(no_items, folder / SEEN_FILE, {"format_version": "1"})
    pq.write_table(pa.table({"id": column}), folder / USERS_FILE, compression="zstd", **options)
    assert (folder / USERS_FILE).stat().st_size < 20_000


def repeated(value, n_users, as_type=None):
    values = pa.array([value], as_type)
    return pa.DictionaryArray.from_arrays(np.zeros(n_users, np.int32), values)


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (repeated("a" * 50_000, 2_000), {"store_schema": False}),
        (repeated("a" * 50_000, 2_000), {}),
        (repeated("a" * 50_000, 2_000).cast(pa.string()),
         {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
        (repeated("a" * 50_000, 2_000).cast(pa.string()), {"use_dictionary": False}),
        (repeated(b"a" * 50_000, 2_000, pa.binary(50_000)), {"store_schema": False}),
        (pa.ListArray.from_arrays(
            np.array([0, 0, 5_000_000], np.int32), np.zeros(5_000_000, np.int32)), {}),
        (pa.ListArray.from_arrays(
            np.array([0, 0, 2_000], np.int32), repeated("a" * 50_000, 2_000)), {}),
        (pa.StructArray.from_arrays([repeated("a" * 50_000, 2_000)], ["text"]), {}),
    ],
    ids=["dictionary", "category", "prefixes", "compressed", "wide", "list", "texts", "struct"],
)  # fmt: skip
def test_a_small_file_that_decodes_to_far_more_is_refused(tmp_path, column, options):
    bomb(tmp_path, column, **options)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match=r"known users in .* are incomplete or damaged"):
        load_known_users(tmp_path, key="id", n_items=1)
    assert pa.default_memory_pool().max_memory() - before < 2**24
