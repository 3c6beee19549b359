"""Encoded tables: what the extractor makes of raw records, and nothing from the future."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from ftmamba.data import encoded
from ftmamba.data.encoded import encode
from ftmamba.data.tables import Tables
from modeling_ftmamba.configuration_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor
from tests.made_up_tables import clusters

DAYS = (1, 1000)


@pytest.fixture(scope="module")
def tables():
    return clusters(60, 30, n_events=500, popularity_days=DAYS)


@pytest.fixture(scope="module")
def train(tables):
    events = tables.interactions
    return events.select(events.times < np.quantile(events.times, 0.8))


@pytest.fixture
def data(tables, train, tmp_path):
    return encode(tables, train, cache_dir=tmp_path)


def assert_equal(first, second):
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_gathered_rows_equal_the_encoding_of_the_raw_records(data, tables):
    rows = torch.tensor([3, 0, 3, 59])
    records = [tables.user_record(row) for row in rows.tolist()]

    assert_equal(data.gather_users(rows), dict(data.extractor(users=records)))

    rows = torch.tensor([29, 1])
    records = tables.items.take(pa.array(rows.numpy())).to_pylist()
    assert_equal(data.gather_items(rows), dict(data.extractor(items=records)))


def test_popularity_lies_in_its_slots_and_leaves_the_others(data):
    rows, popularity = torch.tensor([4, 4]), torch.tensor([[0.5, 1.5], [2.5, 3.5]])

    numeric = data.gather_items(rows, popularity)["item_numeric"]

    assert len(data.popularity_slots) == len(DAYS)
    torch.testing.assert_close(numeric[:, list(data.popularity_slots)], popularity)
    others = [s for s in range(numeric.shape[1]) if s not in data.popularity_slots]
    assert others
    torch.testing.assert_close(numeric[:, others], data.items["numeric"][rows][:, others])
    assert data.items["numeric"][:, list(data.popularity_slots)].isnan().all()


def test_popularity_is_the_scaled_count_before_each_time(data, tables, train):
    names = [column.name for column in tables.schema.items.popularity_columns]
    found = data.popularity_at(train.item_ids, train.times)
    for item, time, scaled in zip(train.item_ids, train.times, found, strict=True):
        for days, name, value in zip(DAYS, names, scaled.tolist(), strict=True):
            before = (train.times < time) & (train.times >= time - days * 86400)
            raw = np.array([np.log1p(int((train.item_ids[before] == item).sum()))])
            expected = data.extractor.encoder("item", name).encode(raw)
            assert value == pytest.approx(float(expected[0, 0]), abs=1e-5)
    assert len(found) == len(train) >= 320
    assert abs(found.mean()) < 1e-5


@pytest.mark.parametrize("moment", [None, 0.5])
@pytest.mark.parametrize("size", [7, 30, 64])
def test_the_catalogue_is_as_of_a_moment_whole_and_by_stretches(data, train, moment, size):
    as_of = None if moment is None else int(np.quantile(train.times, moment))
    rows = data.catalogue_rows(as_of)

    stretches = [rows(start, min(start + size, 30)) for start in range(0, 30, size)]

    times = np.full(30, int(train.times.max()) + 1 if as_of is None else as_of)
    popularity = torch.from_numpy(data.popularity_at(np.arange(30), times))
    expected = data.gather_items(torch.arange(30), popularity)
    assert_equal({k: torch.cat([part[k] for part in stretches]) for k in expected}, expected)
    assert_equal(data.catalogue(as_of), expected)
    assert bool(data.items["numeric"][:, data.popularity_slots].isnan().all())
    assert as_of is None or not torch.equal(
        expected["item_numeric"], data.catalogue()["item_numeric"]
    )


def test_the_moment_of_the_catalogue_can_be_given(tables, train, tmp_path):
    moment = int(np.median(train.times))

    data = encode(tables, train, as_of=moment, cache_dir=tmp_path)

    assert data.as_of == moment
    assert_equal(data.catalogue(), data.catalogue(moment))


def test_what_is_outside_the_training_part_changes_nothing(tables, train, tmp_path):
    unseen = np.setdiff1d(np.arange(60), train.user_ids[:20])
    few = train.select(np.arange(20))
    users = tables.users
    ages, tastes = (users.column(name).to_pylist() for name in ("age", "taste"))
    for row in unseen:
        ages[row], tastes[row] = 10_000, f"new taste {row}"
    spoilt_users = pa.table({"user_id": users.column("user_id"), "age": ages, "taste": tastes})
    spoilt = dataclasses.replace(tables, users=spoilt_users)

    first, second = (encode(some, few, cache_dir=tmp_path) for some in (tables, spoilt))

    assert len(unseen) > 10
    assert first.interactions != second.interactions
    assert first.extractor.to_dict() == second.extractor.to_dict()
    seen = torch.from_numpy(np.unique(few.user_ids))
    assert_equal(first.gather_users(seen), second.gather_users(seen))
    assert (second.users["category_ids"][torch.from_numpy(unseen)] == 2).all()


def test_the_second_time_nothing_is_encoded_whatever_the_tables_other_interactions(
    tables, train, tmp_path, monkeypatch
):
    first = encode(tables, train, cache_dir=tmp_path)
    monkeypatch.setattr("ftmamba.data.encoded.fit_extractor", None)
    monkeypatch.setattr(FTMambaFeatureExtractor, "__call__", None)
    users = pa.concat_tables([tables.users.slice(0, 7), tables.users.slice(7)])
    users = users.replace_schema_metadata({"read": "elsewhere"})

    same = Tables(users, tables.items, train.select(np.arange(5)), tables.schema)
    second = encode(same, train, cache_dir=tmp_path)

    assert first.interactions == second.interactions
    assert_equal(first.users, second.users)
    assert_equal(first.catalogue(), second.catalogue())


def priced(tables, train, **context):
    values = tables.schema.to_dict()
    values["users"]["columns"]["history"] = {
        "kind": "history", "event_features": ["weight", *context],
    }  # fmt: skip
    columns = {name: np.array(one, np.float32) for name, one in context.items()}
    part = dataclasses.replace(train.select(np.arange(4)), context=columns)
    return dataclasses.replace(tables, schema=type(tables.schema).from_dict(values)), part


def test_whatever_else_went_in_is_encoded_anew(tables, train, tmp_path):
    ages = tables.users.column("age").to_pylist()
    ages[0] = 1
    fewer = tables.schema.to_dict()
    fewer["users"] = {"key": "user_id", "columns": {"age": "numeric"}}
    inputs = [
        (tables, train),
        (
            dataclasses.replace(tables, users=tables.users.set_column(1, "age", pa.array(ages))),
            train,
        ),
        (dataclasses.replace(tables, schema=type(tables.schema).from_dict(fewer)), train),
        (tables, train.select(np.arange(len(train) - 1))),
        *(
            priced(tables, train, **context)
            for context in (
                {"price": [1, 2, 3, 4]},
                {"price": [1, 2, 3, 5]},
                {"cost": [1, 2, 3, 4]},
                {"price": [1, 2, 3, 4], "cost": [1, 2, 3, 4]},
                {"cost": [1, 2, 3, 4], "price": [1, 2, 3, 4]},
                {},
            )
        ),
    ]
    files = {encode(*each, cache_dir=tmp_path).interactions for each in (*inputs, *inputs)}
    assert len(files) == len(inputs)


@pytest.mark.parametrize("name", [
    "users.arrow", "items.arrow", "interactions.arrow", "vocabularies.safetensors",
    "preprocessor_config.json", "checksums.json",
])  # fmt: skip
def test_a_flipped_bit_of_the_cache_is_noticed_and_encoded_again(
    tables, train, tmp_path, caplog, name
):
    first = encode(tables, train, cache_dir=tmp_path)
    pairs = first.training_pairs()
    path = first.interactions.with_name(name)
    content = path.read_bytes()
    for position in (0.1, 0.5, 0.9):
        changed = bytearray(content)
        changed[int(position * len(content))] ^= 4
        path.write_bytes(changed)
        second = encode(tables, train, cache_dir=tmp_path)
        assert_equal(first.users, second.users)
        assert_equal(first.items, second.items)
        assert all(map(torch.equal, pairs, second.training_pairs()))
        assert path.read_bytes() == content
    assert caplog.text.count("is damaged") == 3
    path.unlink()
    assert_equal(first.users, encode(tables, train, cache_dir=tmp_path).users)


def test_an_interrupted_encoding_leaves_nothing(tables, train, tmp_path, monkeypatch):
    def full_disk(path, arrays):
        if path.name == "interactions.arrow":
            raise OSError("No space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr(encoded, "write_arrays", full_disk)
    with pytest.raises(OSError, match="No space left"):
        encode(tables, train, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tables_without_times_or_popularity_are_encoded(train, tmp_path):
    tables = clusters(60, 30, n_events=500)
    events = train.select(np.arange(100))
    bare = type(events)(events.user_ids, events.item_ids, None, None, 60, 30)

    data = encode(tables, bare, cache_dir=tmp_path)

    assert (data.popularity_history, data.as_of, data.popularity_slots) == (None, None, ())
    assert_equal(data.catalogue(), data.gather_items(torch.arange(30)))
    with pytest.raises(ValueError, match="the items have no popularity columns"):
        data.popularity_at(np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(ValueError, match="the training part has no interactions"):
        encode(tables, bare.select(np.arange(0)), cache_dir=tmp_path)


def test_counts_and_interactions_are_those_of_the_training_part(data, train):
    assert data.item_counts.tolist() == [int((train.item_ids == i).sum()) for i in range(30)]
    user_ids, item_ids = data.training_pairs()
    np.testing.assert_array_equal(user_ids.numpy(), train.user_ids)
    np.testing.assert_array_equal(item_ids.numpy(), train.item_ids)
    assert (data.n_users, data.n_items) == (60, 30)
    dataset = Dataset.from_file(str(data.interactions))
    assert dataset["times"][:5] == train.times[:5].tolist()


@pytest.mark.parametrize(
    ("prices", "scale"),
    [
        ([1, 2, 3, 6], [3, 3.5**0.5]),
        ([2, np.nan, 6, np.nan], [4, 2]),
        ([0.1] * 4, [pytest.approx(0.1), 1]),
        ([7, np.nan, np.nan, np.nan], [7, 1]),
        ([np.nan] * 4, [0, 1]),
        ([0, 0, 0, 1e-38], [pytest.approx(0), 1]),
        ([1e30, -1e30, 1e30, -1e30], [0, pytest.approx(1e30)]),
        ([False, True, False, True], [0.5, 0.5]),
    ],
)
def test_scales_are_of_the_numbers_that_are_known(tables, train, tmp_path, prices, scale):
    data = encode(*priced(tables, train, price=prices), cache_dir=tmp_path)
    history = data.extractor.user_columns[-1]
    assert history["event_scales"] == [[0, 1], scale]
    FTMambaTowerConfig(columns=data.extractor.user_columns)


def test_without_numbers_beside_events_nothing_is_scaled(tables, train, tmp_path):
    history = encode(*priced(tables, train), cache_dir=tmp_path).extractor.user_columns[-1]
    assert history == {"name": "history", "kind": "history", "event_features": ["weight"]}
