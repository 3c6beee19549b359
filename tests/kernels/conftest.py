"""The kernels at each instruction set that this processor runs, and layers that use them.

FTMAMBA_TEST_KERNELS names another build of the library, such as the one with sanitizers.
"""

import os
from pathlib import Path

import pytest
import torch

from ftmamba.kernels import attach as attach_module
from ftmamba.kernels import library as library_module
from ftmamba.kernels import softmax
from ftmamba.kernels.library import KernelLibrary, library_path
from modeling_ftmamba import FTMambaTowerConfig
from modeling_ftmamba.network import FTMambaLayer, attach_kernels

LIBRARY = Path(os.environ.get("FTMAMBA_TEST_KERNELS") or library_path() or "none built")
EMULATED_TILES = "emulated_tiles"
BUILT = KernelLibrary(LIBRARY).variants() if LIBRARY.is_file() else ["none built", EMULATED_TILES]
VARIANTS = [name for name in BUILT if name != EMULATED_TILES]
WITH_TILES = [name for name in BUILT if name in ("amx", EMULATED_TILES)]


@pytest.fixture
def use(monkeypatch):
    """Run the operators with a library, or, given a reason, without one."""

    def run_with(library):
        attach_module.missing.cache_clear()
        for module in (library_module, attach_module, softmax):
            monkeypatch.setattr(module, "installed_library", lambda: library)

    yield run_with
    attach_module.missing.cache_clear()


@pytest.fixture(autouse=True)
def _library(use):
    assert LIBRARY.is_file(), "the C kernels are not built: install gcc, then the package again"
    use(KernelLibrary(LIBRARY))


@pytest.fixture(params=VARIANTS)
def variant(request, use):
    """Run the operators at one instruction set."""
    use(KernelLibrary(LIBRARY, request.param))
    return request.param


@pytest.fixture
def threads():
    """Set torch's threads, and set them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_layer(scan="auto", *, mixer="mamba", **fields):
    """A layer in float32 whose parameters are off their initial values."""
    torch.manual_seed(0)
    layer = FTMambaLayer(FTMambaTowerConfig(columns=[], mixer=mixer, **fields), 1)
    for one in (layer.mixer, layer.reverse_mixer):
        if hasattr(one, "reset_parameters"):
            one.reset_parameters()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    attach_kernels(layer, scan)
    return layer


def twins(**fields):
    """The layer on its kernels, and its definition in float64 with the same parameters."""
    layer, exact = make_layer(**fields), make_layer("sequential", **fields)
    exact.load_state_dict(layer.state_dict())
    return layer, exact.double()


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def relative_error(got, expected):
    """Largest difference over the largest number."""
    scale = expected.abs().max().clamp(min=1e-30)
    return ((got.double() - expected).abs().max() / scale).item()


def gradients(output, wanted):
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), wanted)


def compare(layer, exact, x, run, values=2e-6, slopes=1e-5):
    """Assert that outputs and all gradients are those of the definition."""
    x_exact, x = x.double().requires_grad_(), x.requires_grad_()
    expected, got = run(exact, x_exact), run(layer, x)
    assert got.dtype is torch.float32
    assert relative_error(got, expected) < values
    wanted = dict(layer.named_parameters()), dict(exact.named_parameters())
    found = gradients(got, [x, *wanted[0].values()])
    right = gradients(expected, [x_exact, *wanted[1].values()])
    errors = {
        name: relative_error(a, b)
        for name, a, b in zip(["x", *wanted[0]], found, right, strict=True)
    }
    assert len(errors) > 7
    assert max(errors.values()) < slopes, errors
