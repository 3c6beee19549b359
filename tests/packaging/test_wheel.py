"""What the wheel holds, and that it works from another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("modeling_ftmamba", "ftmamba", "hub_cards")
KINDS = ("recipes", "presets", "accelerate")
INSTALLED = "ftmamba/_configuration"

TELL_WHAT_IS_FOUND = """
import json, sys
from importlib.resources import files

import ftmamba, hub_cards, modeling_ftmamba, train_accelerate
from ftmamba.flags import load_recipe
from ftmamba.recipe import load_preset
from ftmamba.recipe import shipped_names

modules = (ftmamba, hub_cards, modeling_ftmamba, train_accelerate)
json.dump({
    "files": [module.__file__ for module in modules],
    "recipe": load_recipe(["--config", "movielens-100k"]).data.name,
    "presets": {name: load_preset(name) for name in shipped_names("presets")},
    "launch_files": shipped_names("accelerate"),
    "has_template": (files("hub_cards") / "model_card.md.jinja").is_file(),
}, sys.stdout)
"""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *command],
        env={**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def copy_of_the_tree(folder: Path) -> Path:
    """A copy of the files that a commit would hold; building in it leaves the tree clean."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def build_wheel(source: Path, **environment: str) -> Path:
    done = run(
        "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir",
        "dist", ".", cwd=source, **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (source / "dist").glob("ftmamba-*.whl")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_of_the_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source):
    return build_wheel(source)


@pytest.fixture(scope="module")
def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that pip installed the wheel into."""
    folder = tmp_path_factory.mktemp("site")
    done = run(
        "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel),
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_every_module(source, contents):
    modules = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*.py")
    }
    assert len(modules) > 90
    assert {name for name in contents if name.endswith(".py")} == modules | {"train_accelerate.py"}


def test_the_wheel_holds_configuration_kernels_and_templates_and_takes_no_common_name(
    source, contents
):
    for kind in KINDS:
        shipped = {path.name for path in (source / "configuration" / kind).iterdir()}
        assert shipped
        assert {name for name in contents if f"/{kind}/" in name} == {
            f"{INSTALLED}/{kind}/{name}" for name in shipped
        }
    assert [name for name in contents if name.startswith("ftmamba/kernels/_native.")]
    for name in ("model_card.md.jinja", "macros.md.jinja", "space_page.css", "card_preview.css"):
        assert f"hub_cards/{name}" in contents
    assert {name.split("/")[0] for name in contents} == {*PACKAGES, "train_accelerate.py"}


TELL_THE_SCAN = """
from ftmamba.kernels.attach import attach
from modeling_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.network import FTMambaLayer
layer = FTMambaLayer(FTMambaTowerConfig(columns=[]), 1)
attach(layer, "auto")
print(layer.mixer.scan_name())
attach(layer, "cpu")
"""


def test_without_a_compiler_the_wheel_builds_and_says_what_is_missing(tmp_path):
    wheel = build_wheel(copy_of_the_tree(tmp_path / "source"), CC="false")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "_native" in name]
        archive.extractall(tmp_path / "site")
    done = run("-c", TELL_THE_SCAN, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout == "sequential\n"
    assert done.stderr.count("The scan runs in plain torch, slower on a CPU") == 1
    assert "install a C compiler (gcc or clang) and install ftmamba again" in done.stderr
    assert "RuntimeError: the cpu scan cannot run here" in done.stderr


def test_an_installed_wheel_finds_its_files_from_another_folder(installed, tmp_path):
    done = run("-c", TELL_WHAT_IS_FOUND, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["files"]) == 4
    assert all(Path(file).is_relative_to(installed) for file in told["files"])
    assert told["recipe"] == "movielens-100k"
    assert told["presets"].keys() >= {"ft-mamba-paper", "ft-transformer-paper", "ft-mamba-small"}
    assert all(told["presets"].values())
    assert "one-process" in told["launch_files"]
    assert told["has_template"]


def test_training_starts_from_an_installed_wheel_without_the_repository(installed, tmp_path):
    """The module that accelerate launches; a typing error in a flag ends it before any work."""
    done = run(
        "-m", "accelerate.commands.launch", "--quiet", "--cpu",
        "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "train_accelerate",
        "--config", "movielens-100k", "--learning_rat", "0.1",
        cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("train_accelerate.py: error: unknown flag '--learning_rat'")
    assert "did you mean '--learning_rate'" in line
    assert done.returncode != 0
