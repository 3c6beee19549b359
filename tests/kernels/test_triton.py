"""The Triton scan: what it computes and compiles to, each in a process of its own, and refusals.

Triton decides when it is imported whether kernels run on a GPU or in its interpreter, so that the
checks cannot share a process with other tests. They are in `triton_checks`; a failure shows what
pytest said there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ftmamba.kernels
from ftmamba.kernels import triton_launch
from ftmamba.kernels.triton_layer import triton_scan

CHECKS = Path(__file__).parent / "triton_checks"
ROOT = CHECKS.parents[2]
INTERPRETED = not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("files", "is_interpreted", "fewest"),
    [(("scan.py", "mixer.py"), INTERPRETED, 60), (("compiled.py",), False, 9)],
    ids=["computed", "compiled"],
)
def test_triton_computes_and_compiles_to_what_it_should(files, is_interpreted, fewest, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT]
    own = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": str(int(is_interpreted))}
    done = subprocess.run(
        [*command, *(CHECKS / file for file in files)],
        env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= fewest


def test_without_triton_the_code_loads_and_says_how_to_get_it(tmp_path):
    package = tmp_path / "copied_code"
    package.mkdir()
    for path in Path(ftmamba.kernels.__file__).parent.glob("*.py"):
        (package / path.name).write_bytes(path.read_bytes())
    (tmp_path / "triton.py").write_text("raise ImportError(\"No module named 'triton'\")\n")
    program = """
import sys
import torch
from copied_code.triton_launch import why_not
from copied_code.triton_layer import triton_scan
assert "copied_code.triton_scan" not in sys.modules
print(why_not())
try:
    triton_scan(*map(torch.zeros, [(1, 2, 3), (1, 2, 3), (3, 4), (1, 2, 4), (1, 2, 4)]))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected = (
        "the triton scan cannot run here: Triton is not installed: pip install triton, "
        "or model.set_scan('auto')\n"
    )
    assert done.stdout == 2 * expected


@pytest.fixture
def not_interpreted(monkeypatch):
    monkeypatch.setattr("ftmamba.kernels.triton_scan.INTERPRETED", False)


@pytest.mark.usefixtures("not_interpreted")
def test_without_a_gpu_it_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = triton_launch.why_not()
    assert "needs a GPU" in reason
    assert "install torch for CUDA" in reason


@pytest.mark.usefixtures("not_interpreted")
def test_tensors_on_the_cpu_are_refused_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(triton_launch, "why_not", lambda: None)
    tensors = [torch.zeros(shape) for shape in [(1, 2, 3)] * 2 + [(3, 4)] + [(1, 2, 4)] * 2]
    with pytest.raises(RuntimeError, match=r"got tensors on cpu; .* \.to\('cuda'\)"):
        triton_scan(*tensors)


def test_chunks_run_side_by_side_where_records_are_long_and_few(monkeypatch):
    monkeypatch.setattr(triton_launch, "n_processors", lambda _: 100)
    decide, device = triton_launch.run_side_by_side, torch.device("cuda")
    assert decide(device, n_programs=199, n_chunks=3)
    assert not decide(device, n_programs=200, n_chunks=3)
    assert not decide(device, n_programs=1, n_chunks=2)
