"""What the Triton kernels compile to for three GPUs, without one.

`test_triton.py` runs this file in a process of its own, without Triton's interpreter. A driver
stands in that names the GPU, and kernels are compiled as launched, but not run. By hand:
pytest tests/kernels/triton_checks/compiled.py
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ftmamba.kernels import triton_launch as launch
from ftmamba.kernels import triton_layer
from ftmamba.kernels.library import MambaParameters
from ftmamba.kernels.triton_layer import triton_mixer, triton_scan

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FORWARD = ("scan_forward", "run_chunks", "join_chunks", "conv_forward")
BACKWARD = ("scan_backward", "conv_backward")


class NamedGPU:
    """A driver of a GPU that is not there; each capability is a device, and has its own cache."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, _):
        return 0


@pytest.fixture
def launches(monkeypatch):
    """Launches of each kernel, as pairs of grid and compiled kernel, which was not run."""
    seen, run = defaultdict(list), JITFunction.run

    def compile_only(kernel, *arguments, grid, **options):
        compiled = run(kernel, *arguments, grid=grid, **options | {"warmup": True})
        seen[kernel.fn.__name__].append((grid, compiled))
        return compiled

    monkeypatch.setattr(JITFunction, "run", compile_only)
    for module in (launch, triton_layer):
        monkeypatch.setattr(module, "refuse_elsewhere", lambda _: None)
    return seen


def draw_mixer(d, dtype):
    E, N, K, R = 2 * d, 16, 4, -(-d // 16)
    shapes = [(2 * E, d), (E, 1, K), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,), (d, E)]
    return MambaParameters(*(torch.zeros(x, dtype=dtype, requires_grad=True) for x in shapes))


def mix(rows, length, d=192, *, dtype=torch.bfloat16, backward=True, **options):
    options = {"last": False, "reverse": False} | options
    parameters = draw_mixer(d, dtype)
    tokens = torch.zeros(rows, length, d, dtype=dtype, requires_grad=backward)
    if not backward:
        with torch.no_grad():
            triton_mixer(tokens, parameters, **options)
    else:
        torch.autograd.grad(triton_mixer(tokens, parameters, **options).sum(), [*parameters])


def scan(rows, length, E, N):
    shapes = [(rows, length, E)] * 2 + [(E, N)] + [(rows, length, N)] * 2
    return triton_scan(*(torch.zeros(shape) for shape in shapes))


def usage(compiled, folder):
    """Return registers a thread, and bytes of stack a thread, which is where registers spill."""
    cubin = folder / f"{compiled.hash}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    return int(found[1]), int(found[2]) + int(found[3])


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_forward_kernel_spills_registers(capability, launches, tmp_path, monkeypatch):
    driver.set_active(NamedGPU(capability))
    monkeypatch.setattr(launch, "run_side_by_side", lambda *_: True)
    mix(2, 130, backward=False)
    monkeypatch.setattr(launch, "run_side_by_side", lambda *_: False)
    mix(2, 130, backward=False)
    mix(2, 130, backward=False, last=True)
    mix(2, 130, backward=False, dtype=torch.float32)
    assert sorted(launches) == sorted(FORWARD)
    for name, seen in launches.items():
        for grid, compiled in seen:
            registers, spilled = usage(compiled, tmp_path)
            assert spilled == 0, name
            assert registers <= 128, name
            assert len(grid) == 1


def test_backward_kernels_fit_as_many_times_as_is_launched(launches, tmp_path):
    driver.set_active(NamedGPU(90))
    mix(2, 21)
    assert sorted(launches) == sorted(["scan_forward", "conv_forward", *BACKWARD])
    ((grid, compiled),) = launches["scan_backward"]
    registers, spilled = usage(compiled, tmp_path)
    assert registers * 32 * launch.FULL_WARPS_A_PROCESSOR <= 65536
    assert spilled < 100
    assert len(grid) == 1
    ((_, compiled),) = launches["conv_backward"]
    assert usage(compiled, tmp_path)[1] == 0


@pytest.mark.parametrize("capability", [80, 100])
def test_backward_kernels_compile_for_older_and_newer_gpus(capability, launches, monkeypatch):
    monkeypatch.setattr(launch, "SPAN", 2)
    driver.set_active(NamedGPU(capability))
    mix(2, 21)
    for name in BACKWARD:
        ((_, compiled),) = launches[name]
        assert compiled.asm["cubin"]


def test_no_length_and_no_batch_compiles_anew(launches, monkeypatch):
    driver.set_active(NamedGPU(90))
    monkeypatch.setattr(launch, "SPAN", 2)
    monkeypatch.setattr(launch, "run_side_by_side", lambda *_: False)
    kinds = {}
    for lengths in ((21, 65), (1, 2, 16, 128, 200)):
        for length in lengths:
            for rows in (1, 3, 64):
                mix(rows, length, d=16)
        kinds[lengths] = {
            name: {compiled.hash for _, compiled in seen} for name, seen in launches.items()
        }
    first, second = kinds.values()
    assert first == second
    assert {name: len(hashes) for name, hashes in first.items()} == dict.fromkeys(
        ["conv_forward", "scan_forward", "scan_backward", "conv_backward"], 1
    )
    monkeypatch.setattr(launch, "run_side_by_side", lambda *_: True)
    for length in (65, 200, 1000):
        mix(2, length, d=16)
    compiled = {name: {kernel.hash for _, kernel in seen} for name, seen in launches.items()}
    # Two with each direction, and the forward that is given its states.
    assert {name: len(hashes) for name, hashes in compiled.items()} == {
        "conv_forward": 1,
        "scan_forward": 2,
        "scan_backward": 1,
        "conv_backward": 1,
        "run_chunks": 2,
        "join_chunks": 2,
    }


def test_grids_have_one_axis_that_holds_any_batch(launches):
    driver.set_active(NamedGPU(90))
    mix(70_000, 1, d=16, backward=False)
    ((grid, _),) = launches["scan_forward"]
    assert grid == (70_000,)


def test_many_numbers_of_state_still_fit(launches, tmp_path):
    driver.set_active(NamedGPU(90))
    scan(1, 7, 40, 32)
    ((_, compiled),) = launches["scan_forward"]
    assert usage(compiled, tmp_path)[1] == 0
