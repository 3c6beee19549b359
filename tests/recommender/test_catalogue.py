import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from modeling_ftmamba.catalogue import Catalogue, load_catalogue, weights_fingerprint


@pytest.fixture
def catalogue() -> Catalogue:
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3)
    keys, titles = ("0001", "b", "ключ", ""), ("Toy Story", "", "Amélie | 2001", "x\ny")
    return Catalogue(keys, titles, embeddings, as_of=893286638, fingerprint="f00")


def test_what_is_saved_is_what_is_loaded(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.save(tmp_path / "c")
    loaded = load_catalogue(tmp_path / "c")
    assert loaded.embeddings.tobytes() == catalogue.embeddings.tobytes()
    assert list(loaded.keys) == list(catalogue.keys)
    assert list(loaded.titles) == list(catalogue.titles)
    assert (loaded.as_of, loaded.fingerprint) == (catalogue.as_of, catalogue.fingerprint)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_catalogue_without_a_time_has_none_after_loading(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    dataclasses.replace(catalogue, as_of=None).save(tmp_path / "c")
    assert load_catalogue(tmp_path / "c").as_of is None


def test_a_catalogue_without_titles_has_empty_ones_after_loading(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    dataclasses.replace(catalogue, titles=("",) * 4).save(tmp_path / "c")
    assert list(load_catalogue(tmp_path / "c").titles) == [""] * 4


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -1])
def test_a_truncated_file_is_named(catalogue: Catalogue, tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "c"
    catalogue.save(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=f"{path}' is truncated or no catalogue"):
        load_catalogue(path)


def test_another_version_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "c"
    catalogue.save(path)
    save_file(load_file(path), path, {"format_version": "99"})
    with pytest.raises(ValueError, match="format 99, this code reads 1"):
        load_catalogue(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no catalogue"):
        load_catalogue(tmp_path / "c")


def test_an_unknown_item_is_refused_with_the_near_one(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"no item '001' among the 4 .*; did you mean '0001'"):
        catalogue.row("001")
    assert catalogue.row("ключ") == 2
    assert catalogue.index.rows(["b", "nothing", "0001"]) == [1, None, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ("a", "b", "a", "c")}, "item key 'a' occurs twice"),
        ({"titles": ("a",)}, "catalogue of 4 items must have one each of"),
        ({"embeddings": np.zeros((4, 3))}, r"must be float32 \(items, width\), got float64"),
        ({"embeddings": np.zeros(4, np.float32)}, "must be float32"),
        (
            {"keys": (), "titles": (), "embeddings": np.zeros((0, 3), np.float32)},
            "catalogue of 0 items",
        ),
    ],
)
def test_a_catalogue_that_cannot_be_right_is_refused(
    catalogue: Catalogue, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(catalogue, **change)


def test_the_fingerprint_changes_with_any_weight_and_only_then() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    first = weights_fingerprint(model)
    assert weights_fingerprint(model.eval()) == first
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    assert weights_fingerprint(model) != first
    assert weights_fingerprint(nn.Sequential(nn.Linear(3, 2))) != first
