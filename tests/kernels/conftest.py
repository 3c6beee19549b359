"""The kernels at each instruction set that this processor runs, and layers that use them.

FTMAMBA_TEST_KERNELS names another build of the library, such as the one with sanitizers.
"""

import os
from pathlib import Path

import pytest
import torch
from modeling_ftmamba.scans import scan_named

from ftmamba.kernels import states
from ftmamba.kernels.library import KernelLibrary, library_path
from modeling_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.network import FTMambaLayer

LIBRARY = Path(os.environ.get("FTMAMBA_TEST_KERNELS") or library_path() or "none built")
EMULATED_TILES = "emulated_tiles"
BUILT = KernelLibrary(LIBRARY).variants() if LIBRARY.is_file() else ["none built", EMULATED_TILES]
VARIANTS = [name for name in BUILT if name != EMULATED_TILES]
WITH_TILES = [name for name in BUILT if name in ("amx", EMULATED_TILES)]


@pytest.fixture(autouse=True)
def _library(monkeypatch):
    """Run the operators of the library under test."""
    assert LIBRARY.is_file(), "the C kernels are not built: install gcc, then the package again"
    library = KernelLibrary(LIBRARY)
    monkeypatch.setattr(states, "installed_library", lambda: library)


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Run the operators at one instruction set."""
    library = KernelLibrary(LIBRARY, request.param)
    monkeypatch.setattr(states, "installed_library", lambda: library)
    return request.param


@pytest.fixture
def threads():
    """Set torch's threads, and set them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def shake(model):
    """Move every parameter off its initial value, so that zeros and ones hide nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def make_layer(scan, **fields):
    """A layer of float32 numbers, whatever its type, so that float64 twins are equal."""
    config = FTMambaTowerConfig(columns=[], mixer="mamba", **fields)
    layer = FTMambaLayer(config, 1, scan_named(scan))
    torch.manual_seed(0)
    layer.mixer.reset_parameters()
    if layer.reverse_mixer is not None:
        layer.reverse_mixer.reset_parameters()
    return shake(layer)


def twins(**fields):
    """The layer with the compiled kernel, and its float64 definition with the same parameters."""
    layer, exact = make_layer("cpu", **fields), make_layer("reference", **fields)
    exact.load_state_dict(layer.state_dict())
    return layer, exact.double()


def relative_error(got, expected):
    """Largest difference over the largest number."""
    scale = expected.abs().max().clamp(min=1e-30)
    return ((got.double() - expected).abs().max() / scale).item()


def gradients(output, wanted):
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), wanted)
