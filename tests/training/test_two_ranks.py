"""Two processes compute what one does on the global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .toy import OBJECTIVES, gradients

HERE = Path(__file__).parent
LAUNCH_FILE = HERE.parents[1] / "configuration" / "accelerate" / "two-cpu-processes.yaml"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILE),
        "--main_process_port", "0", str(HERE / "two_ranks.py"), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run(
        launch, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


def test_there_are_two_ranks_and_they_end_equal(ranks):
    assert [int(rank["world_size"]) for rank in ranks] == [2, 2]
    assert ranks[0].keys() == ranks[1].keys()
    for name in ranks[0]:
        assert name.endswith("n_targets") or torch.equal(ranks[0][name], ranks[1][name]), name


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_two_ranks_have_the_gradient_of_one_process_on_the_global_batch(
    ranks, loss, accelerator, tmp_path
):
    one = gradients(tmp_path, loss, n_ranks=1, accelerator=accelerator)
    n_targets = [int(rank[f"{loss}/n_targets"]) for rank in ranks]
    assert sum(n_targets) == int(one.pop("n_targets"))
    assert (n_targets[0] != n_targets[1]) == ("sequences" in OBJECTIVES[loss][1])
    assert sum(float(gradient.abs().max()) > 1e-3 for gradient in one.values()) > 10
    for name, gradient in one.items():
        torch.testing.assert_close(ranks[0][f"{loss}/{name}"], gradient, rtol=1e-3, atol=1e-6)


def test_two_ranks_resume_to_the_bit(ranks):
    names = [name for name in ranks[0] if name.startswith("straight/")]
    assert len(names) > 20
    for name in names:
        assert torch.equal(ranks[0][name], ranks[0][name.replace("straight", "resumed")]), name
