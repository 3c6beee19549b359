"""Every scan equals the definition run in float64, values and all gradients."""

from types import SimpleNamespace

import pytest
import torch
from modeling_ftmamba.scan_reference import selective_scan as definition
from modeling_ftmamba.scans import CPU_CONTRACT, SCANS, AutoScan, CannotRun, scan_named

from modeling_ftmamba import scans

ON_CPU = ("reference", "sequential", "cpu")
IN_TYPES = [
    ("reference", torch.float64, 1e-13),
    ("sequential", torch.float64, 1e-13),
    ("reference", torch.float32, 3e-6),
    ("sequential", torch.float32, 3e-6),
    ("cpu", torch.float32, 3e-6),
]
NAMES = ("u", "dt", "A", "B", "C")
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (3, 2, 5, 1), (2, 7, 6, 4), (1, 33, 4, 16), (5, 11, 8, 3)]


def inputs(B, L, E, N, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(B + 10 * L)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [
        draw(B, L, E),
        scale * draw(B, L, E).exp(),
        -draw(E, N).exp(),
        draw(B, L, N),
        draw(B, L, N),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def last_inputs(tensors):
    last = tensors[4].detach()[:, -1].clone().requires_grad_()
    return [*tensors[:4], last]


def gradients(output, tensors):
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


def relative_error(got, expected):
    return ((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def test_two_tokens_by_hand():
    u, dt = torch.tensor([[[2.0], [3.0]]]), torch.tensor([[[0.5], [0.25]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[4.0], [5.0]]]), torch.tensor([[[6.0], [7.0]]])
    first = 0.5 * 4 * 2
    second = torch.exp(torch.tensor(-0.25)) * first + 0.25 * 5 * 3
    for name in ON_CPU:
        scan = scan_named(name)
        torch.testing.assert_close(
            scan.full(u, dt, A, B, C), torch.tensor([[[6 * first], [7 * second]]])
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype", "bound"), IN_TYPES)
def test_values_and_gradients_equal_the_definition_in_float64(name, shape, dtype, bound):
    exact, tensors = inputs(*shape, torch.float64), inputs(*shape, dtype)
    expected, got = definition(*exact), scan_named(name).full(*tensors)
    assert relative_error(got, expected) < bound
    pairs = zip(NAMES, gradients(got, tensors), gradients(expected, exact), strict=True)
    errors = {n: relative_error(a, b) for n, a, b in pairs if b.abs().max() > 0}
    assert {"u", "dt", "B", "C"} <= set(errors)
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype", "bound"), IN_TYPES)
def test_last_token_alone_equals_the_last_of_all(name, shape, dtype, bound):
    exact = last_inputs(inputs(*shape, torch.float64))
    tensors = last_inputs(inputs(*shape, dtype))
    every_C = exact[4][:, None].expand(-1, shape[1], -1)
    expected = definition(*exact[:4], every_C)[:, -1]
    got = scan_named(name).last(*tensors)
    assert relative_error(got, expected) < bound
    pairs = zip(gradients(got, tensors), gradients(expected, exact), strict=True)
    errors = [relative_error(a, b) for a, b in pairs if b.abs().max() > 0]
    assert len(errors) >= 4
    assert max(errors) < bound, errors


@pytest.mark.parametrize("name", ON_CPU)
def test_large_and_small_steps_neither_overflow_nor_vanish(name):
    tensors = inputs(2, 40, 4, 3, torch.float32, scale=30.0)
    exact = inputs(2, 40, 4, 3, torch.float64, scale=30.0)
    got, expected = scan_named(name).full(*tensors), definition(*exact)
    assert relative_error(got, expected) < 3e-6
    for a, b in zip(gradients(got, tensors), gradients(expected, exact), strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("name", ON_CPU)
def test_the_state_is_float32_for_bfloat16_inputs(name):
    tensors = inputs(2, 64, 4, 3, torch.bfloat16)
    exact = [tensor.detach().double() for tensor in tensors]
    got = scan_named(name).full(*tensors)
    assert got.dtype is torch.bfloat16
    # One rounding of the output, 2^-9, and none that add up over the tokens.
    assert relative_error(got, definition(*exact)) < 2**-8


def test_memory_of_the_backward_is_linear_in_length():
    saved = {}
    for length in (50, 100):
        tensors = inputs(1, length, 4, 4, torch.float32)
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            scan_named("sequential").full(*tensors)
        saved[length] = total
    assert saved[100] < 2.01 * saved[50]


def test_an_unknown_scan_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="did you mean 'sequential'"):
        scan_named("sequentail")


def test_every_scan_of_the_registry_is_tried_or_says_why_it_cannot_run():
    for name in SCANS:
        if name not in ON_CPU:
            with pytest.raises(CannotRun, match=f"the {name} scan cannot run here: .*install"):
                scan_named(name)


def test_auto_does_not_ask_for_triton_where_there_is_no_gpu(monkeypatch):
    def not_to_be_called():
        raise AssertionError("importing Triton takes half a second")

    scans._made.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(SCANS, "triton", not_to_be_called)
    assert scan_named("auto").on_cuda.name == "sequential"


def test_auto_takes_the_compiled_kernel_for_float32_and_the_exact_scan_for_float64():
    auto = scan_named("auto")
    assert isinstance(auto, AutoScan)
    assert auto.for_tensor(torch.zeros(1)).name == "cpu"
    assert auto.for_tensor(torch.zeros(1, dtype=torch.float64)).name == "sequential"
    assert auto.for_tensor(torch.zeros(1, device="meta")).name == "sequential"


@pytest.fixture
def without_plugin(monkeypatch):
    """Forget what was found, and find the given entry points instead."""

    def set_found(found):
        scans._made.cache_clear()
        monkeypatch.setattr(scans, "entry_points", lambda **_: found)

    yield set_found
    monkeypatch.undo()
    scans._made.cache_clear()


class Plugin:
    def __init__(self, **attributes):
        self.attributes = attributes

    def load(self):
        if "error" in self.attributes:
            raise self.attributes["error"]
        return SimpleNamespace(**self.attributes)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "pip install ftmamba"),
        ([Plugin(error=ModuleNotFoundError("no ftmamba"))], "no ftmamba"),
        ([Plugin(CONTRACT=CPU_CONTRACT + 1)], "install the ftmamba that the model was saved with"),
        ([Plugin(CONTRACT=CPU_CONTRACT, why_not=lambda: "no compiler")], "no compiler"),
    ],
)
def test_without_the_kernel_auto_falls_back_and_cpu_says_why(without_plugin, found, reason):
    without_plugin(found)
    with pytest.raises(CannotRun, match=reason):
        scan_named("cpu")
    assert scan_named("auto").for_tensor(torch.zeros(1)).name == "sequential"
