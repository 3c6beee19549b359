import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from modeling_ftmamba.catalogue import Catalogue, load_catalogue, weights_fingerprint


@pytest.fixture
def catalogue():
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3)
    keys, titles = ("0001", "b", "ключ", ""), ("Toy Story", "", "Amélie | 2001", "x\ny")
    return Catalogue(keys, titles, embeddings, as_of=893286638, fingerprint="f00")


@pytest.mark.parametrize("changes", [{}, {"as_of": None}, {"titles": ("",) * 4}])
def test_what_is_saved_is_what_is_loaded(catalogue, tmp_path, changes):
    catalogue = dataclasses.replace(catalogue, **changes)
    catalogue.save(tmp_path / "c")
    loaded = load_catalogue(tmp_path / "c")
    # Over the file that its arrays are maps of.
    loaded.save(tmp_path / "c")
    loaded = load_catalogue(tmp_path / "c")
    assert loaded.embeddings.tobytes() == catalogue.embeddings.tobytes()
    assert list(loaded.keys) == list(catalogue.keys)
    assert list(loaded.titles) == list(catalogue.titles)
    assert (loaded.as_of, loaded.fingerprint) == (catalogue.as_of, catalogue.fingerprint)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -1])
def test_a_truncated_file_is_named(catalogue, tmp_path, n_bytes):
    path = tmp_path / "c"
    catalogue.save(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=f"{path}' is truncated or no catalogue"):
        load_catalogue(path)


def test_another_version_and_no_file_are_refused(catalogue, tmp_path):
    path = tmp_path / "c"
    with pytest.raises(FileNotFoundError, match="no catalogue"):
        load_catalogue(path)
    catalogue.save(path)
    save_file(load_file(path), path, {"catalogue": '{"format_version": 99}'})
    with pytest.raises(ValueError, match="format 99, this code reads 1"):
        load_catalogue(path)


def test_an_unknown_item_is_refused_with_the_near_one(catalogue):
    with pytest.raises(ValueError, match=r"no item '001' among the 4 .*; did you mean '0001'"):
        catalogue.row("001")
    assert catalogue.row("ключ") == 2
    assert catalogue.rows(["b", "nothing", "0001", ""]) == [1, None, 0, 3]


def test_keys_are_found_whatever_their_length_and_letters():
    keys = [f"{'ж' * (row % 20)}{row}\ud800" for row in range(200)]
    many = Catalogue(keys, [""] * 200, np.zeros((200, 1), np.float32))
    assert many.rows([*keys[::7], "no such key"]) == [*range(0, 200, 7), None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ("a", "b", "a", "c")}, "item key 'a' occurs twice"),
        ({"keys": ("a" * 5000, "b", "c", "d")}, "a key has 5000 bytes"),
        ({"titles": ("a",)}, "catalogue of 4 items must have one each of"),
        ({"embeddings": np.zeros((4, 3))}, r"must be float32 \(items, width\), got float64"),
        ({"embeddings": np.zeros(4, np.float32)}, "must be float32"),
        (
            {"keys": (), "titles": (), "embeddings": np.zeros((0, 3), np.float32)},
            "catalogue of 0 items",
        ),
    ],
)
def test_a_catalogue_that_cannot_be_right_is_refused(catalogue, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(catalogue, **change)


def test_the_fingerprint_changes_with_any_weight_and_only_then():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    first = weights_fingerprint(model)
    assert weights_fingerprint(model.eval()) == first
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    assert weights_fingerprint(model) != first
    assert weights_fingerprint(nn.Sequential(nn.Linear(3, 2))) != first
