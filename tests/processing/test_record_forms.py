"""One record, many records, columns, tables: the same tensors from all of them."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ftmamba.data.fitting import fit_extractor
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

from .conftest import assert_same, make_items, make_users


def rows_of(columns):
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_arrays(columns):
    """Columns of numpy arrays, the only tables where pyarrow is not installed."""
    arrays = {}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float}:
            arrays[name] = np.array(values, dtype=float)
        elif name == "text":
            arrays[name] = np.array([[np.nan] * 3 if v is None else v for v in values])
        else:
            arrays[name] = np.empty(len(values), dtype=object)
            arrays[name][:] = values
    return arrays


def in_chunks(columns):
    table = pa.table(columns)
    return pa.concat_tables([table.slice(0, 5), table.slice(5, 1), table.slice(6)])


def with_dictionaries(columns):
    table = pa.table(columns)
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(index).dictionary_encode()
            table = table.set_column(index, field.name, column)
    return table


FORMS = {
    "records": rows_of,
    "lists": dict,
    "numpy": as_arrays,
    "arrow": pa.table,
    "arrow in chunks": in_chunks,
    "arrow dictionaries": with_dictionaries,
    "datasets": datasets.Dataset.from_dict,
    "datasets, rows picked": lambda c: datasets.Dataset.from_dict(
        {name: values[::-1] for name, values in c.items()}
    ).select(range(len(c[next(iter(c))]) - 1, -1, -1)),
    "pandas": lambda c: pa.table(c).to_pandas(),
    "pandas for Arrow": lambda c: pa.table(c).to_pandas(types_mapper=pd.ArrowDtype),
}


@pytest.mark.parametrize("form", [*FORMS])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_form_gives_the_same_tensors(fitted, form, seed):
    rng = np.random.default_rng(seed)
    users, items = make_users(rng, 40), make_items(rng, 30)
    one_by_one = [fitted(users=user) for user in rows_of(users)]
    expected = {name: torch.cat([one[name] for one in one_by_one]) for name in one_by_one[0]}
    one_by_one = [fitted(items=[item]) for item in rows_of(items)]
    expected |= {name: torch.cat([one[name] for one in one_by_one]) for name in one_by_one[0]}
    assert_same(fitted(users=FORMS[form](users), items=FORMS[form](items)), expected)


@pytest.mark.parametrize("form", [*FORMS])
def test_every_form_fits_the_same(fitted, form):
    rng = np.random.default_rng(1)
    users, items = make_users(rng, 200), make_items(rng, 150)
    blank = [{"name": c["name"], "kind": c["kind"]} for c in fitted.user_columns]
    extractor = FTMambaFeatureExtractor(blank, [{"name": "tags", "kind": "categories"}])
    first = fit_extractor(extractor, FORMS[form](users), FORMS[form](items))
    assert first.to_dict() == fit_extractor(extractor, users, items).to_dict()
    assert first.to_dict()["fingerprint"]


def test_the_tensors_have_the_layout_of_the_columns(fitted):
    rng = np.random.default_rng(3)
    batch = fitted(users=make_users(rng, 6), items=make_items(rng, 4))
    assert list(batch) == fitted.model_input_names
    for tower, n_rows in (("user", 6), ("item", 4)):
        for tensor, kinds, dtype in (
            ("numeric", {"numeric"}, torch.float32),
            ("category_ids", {"categorical"}, torch.int64),
            ("set_ids", {"categories"}, torch.int64),
            ("dense", {"timestamp", "vector"}, torch.float32),
        ):
            width = sum(c.width for c in fitted.columns(tower) if c.kind in kinds)
            if width:
                assert batch[f"{tower}_{tensor}"].shape == (n_rows, width)
                assert batch[f"{tower}_{tensor}"].dtype == dtype
            else:
                assert f"{tower}_{tensor}" not in batch


def test_absent_columns_are_missing_values_and_others_are_ignored(fitted):
    names = [column.name for column in fitted.columns("user")]
    nothing = fitted(users=dict.fromkeys(names))
    assert_same(fitted(users={}), nothing)
    assert_same(fitted(users={"job": None, "shoe_size": 43}), nothing)
    assert_same(fitted(users=pa.table({"job": pa.nulls(1)})), nothing)
    assert nothing["user_category_ids"].tolist() == [[1, 1, 1]]
    assert nothing["user_numeric"].isnan().all()


def test_unseen_values_are_never_errors(fitted):
    odd = {"job": "\ud800 astronaut", "zip": 3.14, "member": "perhaps", "age": -1e9}
    ids = fitted(users=odd)["user_category_ids"][0].tolist()
    assert ids[0] == ids[2] == 2
    assert ids[1] >= fitted.columns("user")[3].vocabulary_size - 5


def test_no_records_give_no_rows(fitted):
    batch = fitted(users=[], items=pa.table(make_items(np.random.default_rng(0), 3)).slice(0, 0))
    assert {len(tensor) for tensor in batch.values()} == {0}
    assert {tensor.shape[1] > 0 for tensor in batch.values()} == {True}


@pytest.mark.parametrize(
    ("items", "n_rows"),
    [
        ({"genres": ["Ärzte", "b"]}, 1),
        ({"genres": [["Ärzte"], ["b"]]}, 2),
        ({"tags": np.array(["b", "e"])}, 1),
        ({"text": [1.0, 2.0, 3.0]}, 1),
        ({"text": np.ones((2, 3))}, 2),
        ({"text": [np.ones(3), None]}, 2),
        ({"text": [1.0, 2.0, 3.0], "released": 5}, 1),
        ({"genres": "b|e"}, 1),
        ({"released": [5, 6], "tags": [["b"], None]}, 2),
        ({"released": (5, 6)}, 2),
    ],
)
def test_a_dict_is_one_record_unless_its_values_are_columns(fitted, items, n_rows):
    assert len(fitted(items=items)["item_set_ids"]) == n_rows


def test_fitting_leaves_the_declared_columns_as_they_are():
    columns = [{"name": "tags", "kind": "categories"}, {"name": "text", "kind": "vector"}]
    declared = FTMambaFeatureExtractor(columns)
    before = declared.to_dict()
    wide = {"tags": [["a", "b", "c"], ["a"]], "text": [[1.0, 2.0, 3.0], None]}
    narrow = {"tags": [["d"], ["e"]], "text": [[1.0], [2.0]]}
    for users, width in ((wide, 3), (narrow, 1)):
        fitted = fit_extractor(declared, users, {})
        assert [column.width for column in fitted.columns("user")] == [width, width]
    assert declared.to_dict() == before


def test_known_values_are_the_vocabulary_by_frequency_then_text():
    job = {"name": "job", "kind": "categorical", "min_count": 2}
    extractor = FTMambaFeatureExtractor([job], [{"name": "genres", "kind": "categories"}])
    users = {"job": ["spy", "nurse", "artist", "nurse", "artist"]}
    extractor = fit_extractor(extractor, users, {"genres": [["war"], ["tea", "war"], None]})
    extractor.known_values("user", "job").clear()
    assert extractor.known_values("user", "job") == ["artist", "nurse"]
    assert extractor.known_values("item", "genres") == ["war", "tea"]


def test_it_prints_in_a_line(fitted):
    assert repr(fitted) == (
        "FTMambaFeatureExtractor(user: 2 numeric, 3 categorical, 1 timestamp; item: 2 categories, "
        "1 timestamp, 1 vector, 1 numeric; 72 categories)"
    )
    assert repr(FTMambaFeatureExtractor()).endswith("item: no columns; not fitted)")
