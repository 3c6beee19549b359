"""A saved extractor: whole or not there, and the same one wherever it is loaded."""

import json
import os
import shutil

import numpy as np
import pytest

from ftmamba.data.fitting import fit_extractor
from modeling_ftmamba import processing_ftmamba
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

from .conftest import ITEM_COLUMNS, USER_COLUMNS, assert_same, make_items, make_users

LOAD = FTMambaFeatureExtractor.from_pretrained
CONFIG, VOCABULARIES = "preprocessor_config.json", "vocabularies.safetensors"


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def other():
    extractor = FTMambaFeatureExtractor(USER_COLUMNS, ITEM_COLUMNS)
    rng = np.random.default_rng(99)
    return fit_extractor(extractor, make_users(rng, 50), make_items(rng, 50))


def encoded(extractor):
    rng = np.random.default_rng(5)
    return extractor(make_users(rng, 50), make_items(rng, 50))


def test_a_saved_extractor_encodes_bitwise_the_same(fitted, folder):
    loaded = LOAD(folder)
    assert loaded.to_dict() == fitted.to_dict()
    assert (loaded.user_key, loaded.item_key) == ("user_id", "item_id")
    assert_same(encoded(loaded), encoded(fitted))
    assert_same(encoded(LOAD(folder / CONFIG)), encoded(fitted))


def test_saving_again_writes_the_same_bytes_with_the_code_that_loads_them(folder, tmp_path):
    LOAD(folder).save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    own = ("processing_ftmamba", "encoders", "catalogue", "user_state", "configuration_ftmamba")
    assert {path.name for path in folder.glob("*.py")} == {f"{name}.py" for name in own}
    auto_map = json.loads((folder / CONFIG).read_text())["auto_map"]
    assert set(auto_map) == {"AutoFeatureExtractor", "AutoProcessor"}
    assert len((folder / CONFIG).read_bytes()) < 10_000


def test_the_files_are_readable_as_any_other(folder):
    umask = os.umask(0)
    os.umask(umask)
    modes = {(folder / name).stat().st_mode & 0o777 for name in (CONFIG, VOCABULARIES)}
    assert modes == {0o666 & ~umask}


def test_it_loads_from_the_hub_cache_at_a_revision_and_in_a_subfolder(fitted, folder, tmp_path):
    repository = tmp_path / "cache" / "models--tester--films"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot / "towers")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text("a" * 40)
    where = {"cache_dir": tmp_path / "cache", "local_files_only": True, "revision": "v1"}
    loaded = LOAD("tester/films", subfolder="towers", **where)
    assert_same(encoded(loaded), encoded(fitted))
    with pytest.raises(OSError, match="tester/films"):
        LOAD("tester/films", **where)


def change_json(folder, **change):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **change}))


def cut_file(folder, name, kept):
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def flip_a_bit(folder):
    content = bytearray((folder / VOCABULARIES).read_bytes())
    content[-1] ^= 1
    (folder / VOCABULARIES).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((lambda folder, kept=kept: cut_file(folder, VOCABULARIES, kept),
           f"{VOCABULARIES} beside it is damaged .* again") for kept in (0, 5, 100, -1)),
        (lambda folder: cut_file(folder, CONFIG, -20), f"{CONFIG}' or the .* is damaged"),
        (flip_a_bit, "of two saves, or one was changed.; download or save"),
        (lambda folder: change_json(folder, format_version=2), "its format_version must be 1"),
        (lambda folder: change_json(folder, user_key=5), "user_key must be a str"),
        (lambda folder: change_json(folder, user_columns=USER_COLUMNS[:1]), "of two saves"),
        (lambda folder: change_json(folder, item_columns=[]), "they are of two saves"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        LOAD(folder)


def test_files_of_two_saves_and_an_absent_one_are_named(folder, other, tmp_path):
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / VOCABULARIES, folder)
    with pytest.raises(ValueError, match="they are of two saves"):
        LOAD(folder)
    (folder / VOCABULARIES).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {VOCABULARIES}; download or save"):
        LOAD(folder)


def test_unknown_keys_of_the_json_file_stop_no_load(fitted, folder):
    change_json(folder, note="a person's")
    assert_same(encoded(LOAD(folder)), encoded(fitted))


def test_a_save_that_fails_leaves_the_old_one_whole(fitted, other, folder, monkeypatch):
    before = sorted(folder.iterdir())

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processing_ftmamba.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    assert sorted(folder.iterdir()) == before
    assert_same(encoded(LOAD(folder)), encoded(fitted))


def test_an_extractor_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="the feature extractor is not fitted"):
        FTMambaFeatureExtractor(USER_COLUMNS, ITEM_COLUMNS).save_pretrained(tmp_path)


def test_awkward_column_names_do_not_mix(tmp_path):
    names = ["a/bytes", "a/b", "ü. ", "__metadata__"]
    columns = [{"name": name, "kind": "categorical"} for name in names]
    extractor = FTMambaFeatureExtractor([{"name": "a", "kind": "vector"}, *columns], [])
    users = {name: [f"{name} {k % (2 + row)}" for k in range(9)] for row, name in enumerate(names)}
    users["a"] = np.ones((9, 2))
    extractor = fit_extractor(extractor, users, {})
    extractor.save_pretrained(tmp_path)
    assert_same(LOAD(tmp_path)(users=users), extractor(users=users))
