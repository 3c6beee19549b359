"""Two processes on uneven histories compute what one does on the global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from .uneven import LOSSES, gradients

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks-of-histories")
    config = ROOT / "configuration" / "accelerate" / "two-cpu-processes.yaml"
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
            "--main_process_port", "0", str(HERE / "two_ranks.py"), str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_one_process_on_the_global_batch(ranks, loss, tmp_path):
    one = gradients(tmp_path, loss, batch_size=16, accelerator=Accelerator(cpu=True))
    counts = [int(rank[f"{loss}/n_targets"]) for rank in ranks]
    assert counts[0] != counts[1]
    assert sum(counts) == int(one.pop("n_targets"))
    assert sum(float(gradient.abs().max()) > 1e-4 for gradient in one.values()) > 10
    for name, gradient in one.items():
        for rank in ranks:
            torch.testing.assert_close(rank[f"{loss}/{name}"], gradient, rtol=1e-3, atol=1e-6)
