"""The kernels written as a repository load through the library `kernels` and compute the same."""

import json
from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel

from ftmamba.__main__ import main
from ftmamba.kernels.attach import _ssd_parameters

from .conftest import make_layer, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels") / "repository"
    assert main(["kernels", str(folder)]) == 0
    return folder


def test_a_local_kernel_mixes_as_the_installed_one(folder):
    loaded = get_local_kernel(folder)
    assert Path(loaded.__file__).is_relative_to(folder)
    mixer, x = make_layer(mixer="ssd", hidden_size=16).mixer, tokens(3, 60, 16)
    parameters = loaded.SSDParameters(*_ssd_parameters(mixer))
    mixed = loaded.mix_in_row_blocks(x, parameters, mixer.norm.eps, last=False)
    assert torch.equal(mixed, mixer(x))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="the triton scan cannot run here"):
            loaded.triton_scan(*(tokens(*shape) for shape in [(1, 2, 3)] * 2 + [(3, 4)]),
                               *[tokens(1, 2, 4)] * 2)  # fmt: skip


def test_each_backend_has_its_variant(folder):
    for backend in ("cpu", "cuda", "rocm"):
        variant = folder / "build" / f"torch-{backend}"
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend}
        assert metadata["name"] == "ftmamba-kernels"
        assert not [path for path in variant.iterdir() if path.suffix not in (".py", ".json")]


def test_a_folder_with_files_is_left_alone(folder, capsys):
    before = sorted(folder.rglob("*.py"))
    assert main(["kernels", str(folder)]) == 2
    assert "holds files; name a new folder" in capsys.readouterr().err
    assert sorted(folder.rglob("*.py")) == before
