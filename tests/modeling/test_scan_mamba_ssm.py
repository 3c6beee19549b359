"""The mamba_ssm back end, with a stand-in for the package, whose kernels need a GPU."""

import sys
from types import ModuleType

import pytest
import torch
from modeling_ftmamba.scan_mamba_ssm import selective_scan, selective_scan_last, why_not
from modeling_ftmamba.scan_reference import selective_scan as definition

from modeling_ftmamba import scan_mamba_ssm, scan_sequential

INTERFACE = "mamba_ssm.ops.selective_scan_interface"


class TheirScan(torch.autograd.Function):
    """The scan in their layout, opaque to graphs as their kernel is."""

    @staticmethod
    def forward(ctx, u_BEL, dt_BEL, A_EN, B_BNL, C_BNL):
        u, dt, B, C = (x.transpose(1, 2) for x in (u_BEL, dt_BEL, B_BNL, C_BNL))
        y_BLE = scan_sequential._Scan.forward(ctx, u, dt, A_EN, B, C)
        # Through numpy, which no graph can hold.
        return torch.from_numpy(y_BLE.numpy().copy()).transpose(1, 2)

    @staticmethod
    def backward(ctx, dy_BEL):
        du, d_dt, dA, dB, dC = scan_sequential._Scan.backward(ctx, dy_BEL.transpose(1, 2))
        du, d_dt, dB, dC = (x.transpose(1, 2) for x in (du, d_dt, dB, dC))
        return du, d_dt, dA, dB, dC


@pytest.fixture
def calls(monkeypatch):
    """Install the stand-in, and return its calls."""
    seen = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        seen.append((u, delta, A, B, C))
        assert D is z is delta_bias is None
        assert not delta_softplus
        return TheirScan.apply(u, delta, A, B, C)

    modules = {name: ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", INTERFACE)}
    modules["mamba_ssm.ops"].selective_scan_interface = modules[INTERFACE]
    modules[INTERFACE].selective_scan_fn = selective_scan_fn
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)


def inputs(*, last=False, B=2, L=5, E=3, N=4):
    shapes = [(B, L, E), (B, L, E), (E, N), (B, L, N), (B, N) if last else (B, L, N)]
    u, dt, A, *matrices = (torch.randn(shape) for shape in shapes)
    return [x.requires_grad_() for x in (u, dt.exp(), -A.exp(), *matrices)]


def doubles(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def test_values_and_gradients_equal_the_definition(calls):
    tensors = inputs()
    exact = doubles(tensors)
    got, expected = selective_scan(*tensors), definition(*exact)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(got.square().sum(), tensors)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_their_kernel_gets_channels_before_tokens_in_one_type(calls):
    u, dt, A, B, C = (x.detach() for x in inputs())
    y = selective_scan(u.bfloat16(), dt, A.bfloat16(), B.bfloat16(), C.bfloat16())
    assert y.dtype is torch.bfloat16
    ((their_u, delta, their_A, their_B, their_C),) = calls
    assert [x.shape for x in (their_u, delta, their_A)] == [(2, 3, 5), (2, 3, 5), (3, 4)]
    assert [x.shape for x in (their_B, their_C)] == [(2, 4, 5), (2, 4, 5)]
    assert {x.dtype for x in calls[0]} == {torch.float32}
    assert all(x.is_contiguous() for x in calls[0])
    torch.testing.assert_close(delta, dt.transpose(1, 2), rtol=0, atol=0)


def test_the_last_token_alone_equals_the_last_of_all(calls):
    u, dt, A, B, C = inputs(last=True)
    got = selective_scan_last(u, dt, A, B, C)
    every_C = C[:, None].expand_as(B)
    torch.testing.assert_close(got, definition(u, dt, A, B, every_C)[:, -1], rtol=1e-5, atol=1e-6)
    assert all(x.abs().sum() > 0 for x in torch.autograd.grad(got.sum(), (u, dt, A, B, C)))
    assert len(calls) == 1


@pytest.mark.parametrize("sizes", [{"B": 0}, {"L": 0}])
def test_no_rows_or_no_tokens_never_reach_their_kernel(calls, sizes):
    tensors = inputs(**sizes)
    y = selective_scan(*tensors)
    assert y.shape == tensors[0].shape
    gradients = torch.autograd.grad(y.sum(), tensors)
    assert not any(gradient.any() for gradient in gradients)
    assert not calls


def test_compiled_graphs_hold_their_kernel_whole(calls):
    tensors = inputs()
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    got, expected = compiled(*tensors), selective_scan(*tensors)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(y.square().sum(), tensors) for y in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(scan_mamba_ssm._opaque, tensors)
    assert len(calls) > 2


@pytest.mark.usefixtures("absent")
def test_where_it_is_absent_it_says_how_to_get_it():
    assert "mamba_ssm does not import" in why_not()
    assert "pip install mamba-ssm" in why_not()
    with pytest.raises(ImportError, match="mamba_ssm does not import"):
        selective_scan(*inputs())


def test_a_package_without_its_kernel_and_a_machine_without_a_gpu_are_told_apart(
    calls, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_not() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a GPU" in why_not()
    monkeypatch.setattr(sys.modules[INTERFACE], "selective_scan_cuda", None, raising=False)
    assert "without its kernel" in why_not()


def test_tensors_that_do_not_fit_are_refused(calls):
    u, dt, A, B, C = inputs()
    with pytest.raises(ValueError, match=r"the mamba_ssm scan got dt \(2, 4, 3\)"):
        selective_scan(u, dt[:, 1:], A, B, C)
    with pytest.raises(ValueError, match=r"got C \(2, 5, 4\)"):
        selective_scan_last(u, dt, A, B, C)
    with pytest.raises(TypeError, match=r"got u of torch\.float64; convert it"):
        selective_scan(u.double(), dt, A, B, C)
    assert not calls
