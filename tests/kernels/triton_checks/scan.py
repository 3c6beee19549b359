"""What the Triton scan computes, against the definition in float64.

`test_triton.py` runs this file in a process of its own, because Triton decides when it is
imported whether kernels run on a GPU or in its interpreter. By hand, without a GPU:
TRITON_INTERPRET=1 pytest tests/kernels/triton_checks/scan.py
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ftmamba.kernels
from ftmamba.kernels import triton_launch as launch
from ftmamba.kernels import triton_layer as scan_module
from ftmamba.kernels.triton_layer import triton_scan

from .conftest import EMPTY_GPU, FULL_GPU
from .definitions import (
    DEVICE,
    assert_equal_to,
    defined,
    doubles,
    relative_error,
    scan_inputs,
)


def check_scan(*shape, dtype=torch.float32):
    tensors = scan_inputs(*shape, dtype=dtype)
    exact = doubles(tensors)
    assert_equal_to(defined(exact), exact, triton_scan(*tensors), tensors)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 2, 33, 8), (1, 21, 40, 3), (1, 5, 3, 32), (2, 3, 65, 5), (1, 64, 2, 1)],
)
def test_values_and_gradients_equal_the_definition(shape, poison):
    check_scan(*shape)
    assert sum(poison) > 0


def test_sixteen_numbers_of_state_and_two_tiles_of_channels():
    check_scan(1, 11, 70, 16)


@pytest.mark.parametrize("shape", [(1, 12, 2, 1), (2, 13, 3, 2), (1, 23, 2, 1)])
def test_chunks_one_after_the_other_and_side_by_side(shape, chunked):
    check_scan(*shape)


def test_chunks_give_the_same_either_way(monkeypatch):
    monkeypatch.setattr(launch, "CHUNK", 6)
    tensors = scan_inputs(2, 13, 3, 1)
    outputs = []
    for processors in (FULL_GPU, EMPTY_GPU):
        monkeypatch.setattr(launch, "n_processors", lambda _, n=processors: n)
        assert launch.run_side_by_side(None, 2, 3) == (processors == EMPTY_GPU)
        y = triton_scan(*tensors)
        outputs.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_state_is_float32_for_half_inputs(dtype):
    tensors = scan_inputs(2, 9, 5, 4, dtype=dtype)
    exact = doubles(tensors)
    expected, got = defined(exact), triton_scan(*tensors)
    # The output's rounding alone.
    assert relative_error(got, expected) < torch.finfo(dtype).eps
    assert_equal_to(expected, exact, got, tensors)


def test_half_tokens_go_with_float32_time_steps():
    u, dt, A, B, C = scan_inputs(2, 5, 3, 2)
    tensors = [u.detach().bfloat16().requires_grad_(), dt, A, B, C]
    exact = doubles(tensors)
    expected, got = defined(exact), triton_scan(*tensors)
    assert got.dtype is torch.bfloat16
    gradients = torch.autograd.grad(got.float().sum(), tensors)
    wanted = torch.autograd.grad(expected.sum(), exact)
    assert [x.dtype for x in gradients] == [torch.bfloat16, *[torch.float32] * 4]
    assert all(relative_error(a, b) < 5e-3 for a, b in zip(gradients, wanted, strict=True))


def test_views_that_split_other_tensors_are_read_in_place():
    xz, BC = torch.randn(2, 5, 14, device=DEVICE), torch.randn(2, 5, 9, device=DEVICE)
    u, B, C = xz[..., 7:], BC[..., 1:5], BC[..., 5:]
    steps, A = torch.rand(2, 7, 5, device=DEVICE), -torch.rand(7, 4, device=DEVICE)
    inputs = (u, steps.transpose(1, 2), A, B, C)
    assert all(launch.dense(x) is x for x in (u, B, C))
    expected = defined([x.double() for x in inputs])
    assert relative_error(triton_scan(*inputs), expected) < 1e-6


def test_large_and_small_steps_neither_overflow_nor_vanish():
    tensors = scan_inputs(1, 9, 4, 3)
    with torch.no_grad():
        tensors[1].mul_(torch.tensor([1e-6, 1e-2, 30.0, 300.0], device=DEVICE))
    exact = doubles(tensors)
    assert_equal_to(defined(exact), exact, triton_scan(*tensors), tensors)


def test_softplus_is_exact_for_small_and_large_arguments():
    raw = torch.linspace(-30, 30, 97, device=DEVICE)
    ones = torch.ones(1, 1, 97, device=DEVICE)
    unit = torch.ones(1, 1, 1, device=DEVICE)
    tensors = launch.ScanTensors(
        u=ones,
        dt=raw.view(1, 1, 97),
        A=-torch.ones(1, 97, device=DEVICE),
        B=unit,
        C=unit,
        D=torch.zeros(97, device=DEVICE),
        bias=torch.zeros(97, device=DEVICE),
        gate=torch.full((1, 1, 97), 100.0, device=DEVICE),
    )
    y, _ = launch.run_forward(tensors, reverse=False, keep_states=False)
    expected = F.softplus(raw.double(), threshold=100)
    error = (y.view(97).double() / 100 - expected).abs() / expected
    assert error.max() < 4e-6
    assert error[48:].max() < 3e-7


def test_gradients_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(launch, "n_processors", lambda _: FULL_GPU)
    tensors = scan_inputs(3, 5, 3, 2)
    weights = torch.randn(3, 5, 3, device=DEVICE)
    once, again = (torch.autograd.grad(triton_scan(*tensors), tensors, weights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 0, 3, 2)])
def test_no_rows_or_no_tokens_give_zeros(shape):
    tensors = scan_inputs(*shape)
    y = triton_scan(*tensors)
    assert y.shape == (*shape[:2], 3)
    assert not y.any()
    gradients = torch.autograd.grad(y.sum(), tensors)
    assert [x.shape for x in gradients] == [x.shape for x in tensors]
    assert not any(x.any() for x in gradients)


def test_offsets_of_rows_go_beyond_32_bits():
    """Two rows lie more than 2^31 numbers apart; the memory between is never touched."""
    stride = 2**30 + 8
    memory = torch.empty(2 * stride + 4, dtype=torch.bfloat16, device=DEVICE)
    far = memory.as_strided((3, 1, 4), (stride, 4, 1))
    near = torch.randn(3, 1, 4, device=DEVICE).bfloat16()
    far.copy_(near)
    _, dt, A, B, C = (x.detach() for x in scan_inputs(3, 1, 4, 2))
    outputs = []
    for u in (far, near):
        assert launch.dense(u) is u
        tensors = [x.detach().requires_grad_() for x in (u, dt, A, B, C)]
        y = triton_scan(*tensors)
        weights = torch.ones_like(y)
        outputs.append([y, *torch.autograd.grad(y, tensors, weights)])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_nothing_is_kept_for_a_backward_that_will_not_come(monkeypatch):
    monkeypatch.setattr(launch, "CHUNK", 2)
    kept, run = [], scan_module.run_forward

    def watched(*arguments, **options):
        y, states_BJNE = run(*arguments, **options)
        kept.append(states_BJNE.numel())
        return y, states_BJNE

    monkeypatch.setattr(scan_module, "run_forward", watched)
    tensors, saved = scan_inputs(1, 5, 2, 1), []
    with torch.no_grad():
        triton_scan(*tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()), lambda x: x):
        triton_scan(*tensors)
    assert kept == [0, 2 * 2]
    assert sum(saved) == sum(tensor.numel() for tensor in tensors) + 2 * 2


def test_operators_pass_the_checks_of_torch(monkeypatch):
    monkeypatch.setattr(launch, "CHUNK", 2)
    torch.library.opcheck(scan_module._scan_forward, (*scan_inputs(2, 3, 3, 1), True))


def test_two_copies_of_the_code_live_in_one_process(tmp_path, monkeypatch):
    folder = tmp_path / "one-copy.of_the_code"
    folder.mkdir()
    for path in Path(ftmamba.kernels.__file__).parent.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "__init__.py").write_text("")
    name = "one_copy_of_the_code"
    package = spec_from_file_location(name, folder / "__init__.py")
    monkeypatch.setitem(sys.modules, name, module_from_spec(package))
    sys.modules[name].__path__ = [str(folder)]
    copy = __import__(f"{name}.triton_layer", fromlist=["triton_layer"])
    assert name == copy.NAMESPACE
    assert scan_module.NAMESPACE == "ftmamba_kernels"
    tensors = scan_inputs(1, 3, 2, 2)
    torch.testing.assert_close(copy.triton_scan(*tensors), triton_scan(*tensors))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({0: (3, 4)}, ValueError, r"takes u \(batch, tokens, channels\)"),
        ({1: (2, 3, 5)}, ValueError, r"dt must .* got \(2, 3, 5\)"),
        ({2: (5, 2)}, ValueError, r"A must .* got \(5, 2\)"),
        ({3: (2, 3, 1)}, ValueError, r"B must .* got \(2, 3, 1\)"),
        ({4: (2, 2)}, ValueError, r"C must .* got \(2, 2\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed, error, message):
    tensors = scan_inputs(2, 3, 4, 2)
    for place, shape in changed.items():
        tensors[place] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(error, match=message):
        triton_scan(*tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_other_types_are_refused_with_a_remedy(dtype):
    tensors = [tensor.detach().to(dtype) for tensor in scan_inputs(2, 3, 4, 2)]
    with pytest.raises(TypeError, match=r"got torch.*set_scan\('sequential'\)"):
        triton_scan(*tensors)
