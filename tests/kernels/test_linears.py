"""Both matrix products give the same linear map, and the rule picks one by vendor and size."""

import pytest
import torch
from torch import nn

from ftmamba.kernels import linears
from ftmamba.kernels.linears import apply_linear, apply_linear_in_chunks, product_into

VENDORS = ["AuthenticAMD", "GenuineIntel", ""]
# When oneDNN is taken: as on AMD, as on Intel, and as elsewhere.
CHOICES = ["always", "with a bias", "never"]


@pytest.fixture
def choose(monkeypatch):
    """Force the choice, whatever the CPU and the sizes."""

    def force(when):
        choices = {"always": lambda _: True, "never": lambda _: False, "with a bias": bool}
        choice = choices[when]
        monkeypatch.setattr(linears, "onednn_is_faster", lambda _, with_bias: choice(with_bias))

    return force


def drawn(*sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    return torch.randn(sizes, generator=generator).requires_grad_()


def gradients(outputs, wanted):
    total = sum(((i + 1) * output.sin()).sum() for i, output in enumerate(outputs))
    return torch.autograd.grad(total, wanted)


@pytest.mark.parametrize("when", CHOICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_chunks", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 8), (5, 7, 8), (0, 7, 8)])
def test_values_and_gradients_equal_float64(choose, when, bias, n_chunks, sizes):
    choose(when)
    module, x = nn.Linear(8, 12, bias=bias), drawn(*sizes)
    outputs = apply_linear_in_chunks(module, x, n_chunks)
    assert len(outputs) == n_chunks
    onednn = when == "always" or (when == "with a bias" and bias)
    assert all(("_LinearBackward" in str(y.grad_fn)) == onednn for y in outputs)
    got = gradients(outputs, [x, *module.parameters()])
    exact, x_exact = nn.Linear(8, 12, bias=bias).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(module.state_dict())
    expected_outputs = exact(x_exact).chunk(n_chunks, -1)
    expected = gradients(expected_outputs, [x_exact, *exact.parameters()])
    for a, b in zip((*outputs, *got), (*expected_outputs, *expected), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("when", CHOICES)
def test_what_is_frozen_gets_no_gradient(choose, when):
    choose(when)
    module, x = nn.Linear(8, 4), drawn(9, 8)
    module.weight.requires_grad_(False)
    apply_linear(module, x.detach()).sum().backward()
    assert module.weight.grad is None
    assert module.bias.grad.tolist() == [9] * 4
    module.bias.requires_grad_(False)
    assert not apply_linear(module, x.detach()).requires_grad


@pytest.mark.parametrize("when", CHOICES)
def test_the_product_fills_its_place(choose, when):
    choose(when)
    x, weight = drawn(9, 8).detach(), drawn(8, 4, 1).detach()[..., 0].t()
    for dtype in (torch.float32, torch.float64):
        wide = torch.full((20, 4), 7.0, dtype=dtype)
        product_into(wide[3:12], x.to(dtype), weight.to(dtype))
        torch.testing.assert_close(wide[3:12], x.to(dtype) @ weight.to(dtype).t())
        assert (wide[:3] == 7).all()
        assert (wide[12:] == 7).all()


def test_the_rule_is_the_vendor_and_the_size(monkeypatch):
    chosen = {}
    for vendor in VENDORS:
        monkeypatch.setattr(linears, "cpu_vendor", lambda vendor=vendor: vendor)
        for with_bias in (True, False):
            sizes = (1, 255, 256, 1023, 1024, 10**6)
            choice = [linears.onednn_is_faster(n, with_bias=with_bias) for n in sizes]
            chosen[vendor, with_bias] = choice.index(True) if True in choice else None
    assert chosen == {
        ("AuthenticAMD", True): 2,
        ("AuthenticAMD", False): 2,
        ("GenuineIntel", True): 4,
        ("GenuineIntel", False): None,
        ("", True): None,
        ("", False): None,
    }


def test_only_plain_float32_on_the_cpu_leaves_the_module(choose):
    choose("always")
    module, x = nn.Linear(8, 4), drawn(9, 8)

    def is_onednn(*arguments):
        return "_LinearBackward" in str(apply_linear(*arguments).grad_fn)

    assert is_onednn(module, x)
    assert not is_onednn(nn.Linear(8, 4).double(), x.double())
    assert not is_onednn(nn.Linear(8, 4).bfloat16(), x.bfloat16())
    with pytest.raises(RuntimeError, match="same dtype"):
        apply_linear(module, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert apply_linear(module, x).dtype is torch.bfloat16
    compiled = torch.compile(apply_linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(module, x), module(x))


def test_an_adapter_and_a_hook_are_run(choose):
    choose("always")

    class Adapter(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    x = drawn(9, 8)
    adapter, hooked = Adapter(8, 4), nn.Linear(8, 4)
    assert torch.equal(apply_linear(adapter, x), adapter(x))
    hooked.register_forward_hook(lambda *call: call[-1] + 1)
    assert torch.equal(apply_linear(hooked, x), hooked(x))
