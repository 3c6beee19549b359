"""The fused layer equals the layer's definition in float64, values and all gradients."""

import pytest
import torch
from modeling_ftmamba.dropout import Dropout
from torch.library import opcheck

from ftmamba.kernels import layer_op, states
from ftmamba.kernels.library import KernelLibrary
from modeling_ftmamba.network import FTMambaLayer

from .conftest import LIBRARY, gradients, make_layer, relative_error, twins

# Rows, tokens, and the architecture: sizes that fill vectors and tiles, and sizes that do not; one
# chunk, several, and several segments of a row.
SHAPES = {
    "one token": (3, 1, {"hidden_size": 16, "state_size": 4}),
    "short rows": (7, 11, {"hidden_size": 64, "state_size": 16}),
    "rows of two chunks": (4, 41, {"hidden_size": 32, "state_size": 16}),
    "odd sizes": (5, 21, {"hidden_size": 23, "state_size": 5, "conv_kernel": 3, "expand": 3}),
    "wide": (3, 21, {"hidden_size": 96, "state_size": 32}),
    "many rows": (40, 9, {"hidden_size": 32, "state_size": 8}),
    "long rows": (2, 300, {"hidden_size": 32, "state_size": 16, "conv_kernel": 2}),
    "longer rows, odd sizes": (2, 517, {"hidden_size": 20, "state_size": 6, "conv_kernel": 7}),
    "no convolution": (3, 12, {"hidden_size": 16, "state_size": 4, "conv_kernel": 1}),
}
# Relative to the largest: a few roundings of products over the hidden size.
VALUES, GRADIENTS = 2e-6, 1e-5


def tokens(rows, length, hidden):
    return torch.randn(rows, length, hidden, generator=torch.Generator().manual_seed(1))


def compare(layer, exact, x, run):
    x_exact = x.double().requires_grad_()
    x = x.requires_grad_()
    expected, got = run(exact, x_exact), run(layer, x)
    assert got.dtype is torch.float32
    assert relative_error(got, expected) < VALUES
    wanted = dict(layer.named_parameters()), dict(exact.named_parameters())
    found = gradients(got, [x, *wanted[0].values()])
    right = gradients(expected, [x_exact, *wanted[1].values()])
    errors = {
        name: relative_error(a, b)
        for name, a, b in zip(["x", *wanted[0]], found, right, strict=True)
    }
    assert len(errors) > 9
    assert max(errors.values()) < GRADIENTS, errors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_a_layer_equals_its_definition(variant, shape, last):
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(**fields)
    x = tokens(rows, length, fields["hidden_size"])
    run = type(layer).forward_last if last else type(layer).forward
    assert layer._fused(x, last=last) is not None
    compare(layer, exact, x, run)


@pytest.mark.parametrize("shape", ["one token", "short rows", "odd sizes", "long rows"])
def test_both_directions_equal_their_definition(variant, shape):
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(bidirectional=True, **fields)
    compare(layer, exact, tokens(rows, length, fields["hidden_size"]), type(layer).forward)


@pytest.mark.parametrize("fields", [{"norm_position": "post"}, {"residual_dropout": 0.5}])
def test_a_layer_with_parts_outside_the_kernel_equals_its_definition(variant, fields):
    layer, exact = twins(hidden_size=32, state_size=8, **fields)
    compare(layer.eval(), exact.eval(), tokens(4, 11, 32), type(layer).forward)


class Kept(Dropout):
    """Dropout of numbers that are known."""

    def __init__(self, kept, rate):
        super().__init__(rate)
        self.kept = kept

    def forward(self, x):
        return x * self.kept / (1 - self.p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_dropout_ahead_of_the_sum_equals_its_definition(variant, shape, last):
    rows, length, fields = SHAPES[shape]
    run = FTMambaLayer.forward_last if last else FTMambaLayer.forward
    x = tokens(rows, length, fields["hidden_size"])

    def seeded(layer, x):
        torch.manual_seed(3)
        return run(layer, x)

    alone, _ = twins(residual_dropout=0.4, mixer_residual=False, **fields)
    kept = seeded(alone.train(), x) != 0
    if kept.numel() > 1000:
        assert 0.55 < kept.float().mean() < 0.65
        assert (kept[0] != kept[1]).any()
    layer, exact = twins(residual_dropout=0.4, **fields)
    exact.dropout = Kept(kept, 0.4)
    assert layer.train()._fused(x, last=last) is not None
    compare(layer, exact.eval(), x, seeded)


def test_dropout_is_not_forgotten_in_training():
    layer = make_layer("cpu", hidden_size=32, state_size=8, residual_dropout=0.5)
    x = tokens(4, 11, 32)
    assert not torch.equal(layer.train()(x), layer.eval()(x))
    unchanged = (layer.train()(x) == x).float().mean()
    assert 0.4 < unchanged < 0.6


def test_rows_do_not_see_each_other(variant):
    layer = make_layer("cpu", hidden_size=32, state_size=8)
    x = tokens(19, 11, 32)
    together = layer(x)
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(1, 700), (2, 65), (5, 65), (64, 11)])
@pytest.mark.parametrize(("hidden_size", "rate"), [(20, 0.0), (32, 0.0), (20, 0.4), (32, 0.4)])
def test_three_threads_give_what_one_gives_and_the_same_every_time(
    rows, length, last, hidden_size, rate, threads, monkeypatch
):
    layer = make_layer("cpu", hidden_size=hidden_size, state_size=16, residual_dropout=rate)
    run = layer.forward_last if last else layer.forward
    x = tokens(rows, length, hidden_size).requires_grad_()
    wanted = [x, *layer.parameters()]
    results, used = [], []

    def as_many_as_torch_has(_, work):
        used.append(work)
        return torch.get_num_threads()

    monkeypatch.setattr(KernelLibrary, "threads_for", as_many_as_torch_has)
    for n_threads in (1, 3, 3):
        threads(n_threads)
        torch.manual_seed(0)
        out = run(x)
        results.append([out, *gradients(out, wanted)])
    assert used
    for one, three, again in zip(*results, strict=True):
        torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-5)
        assert torch.equal(three, again)


def test_threads_are_lent_by_torch():
    assert KernelLibrary(LIBRARY).has_threads


def test_gradients_that_fade_over_a_long_row_are_zero_and_not_denormal(variant):
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    x = tokens(1, 2000, 16).requires_grad_()
    with torch.no_grad():
        layer.mixer.dt_proj.bias.fill_(2.0)
    (d_x,) = torch.autograd.grad(layer.forward_last(x).sum(), x)
    tiny = torch.finfo(torch.float32).tiny
    assert (d_x[:, :100] == 0).all()
    assert not ((d_x.abs() < tiny) & (d_x != 0)).any()


def arguments(rows=2, length=40, keep_states=True, **fields):
    layer = make_layer("cpu", **{"hidden_size": 16, "state_size": 4} | fields)
    x = tokens(rows, length, 16).requires_grad_()
    norm = layer.mixer_norm
    options = (1e-5, True, False, False, 0.3, 7, keep_states)
    return (x, *layer.mixer.fused_parameters(), norm.weight, norm.bias, *options)


def test_the_operator_passes_the_checks_of_torch():
    opcheck(layer_op.mamba_layer, arguments())
    without_bias = list(arguments())
    without_bias[3] = without_bias[10] = without_bias[11] = None
    opcheck(layer_op.mamba_layer, tuple(without_bias))


def test_a_compiled_model_gives_the_same_with_gradients():
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = tokens(3, 40, 16).requires_grad_()
    wanted = [x, *layer.parameters()]
    for run, twin in ((layer, compiled), (layer.forward_last, compiled.forward_last)):
        out, out_compiled = run(x), twin(x)
        torch.testing.assert_close(out_compiled, out)
        pairs = zip(gradients(out_compiled, wanted), gradients(out, wanted), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)


def test_under_autocast_the_kernel_stays_in_float32():
    layer = make_layer("cpu", hidden_size=32, state_size=8)
    x = tokens(3, 11, 32)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    torch.testing.assert_close(got, layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_computes_in_float32_and_answers_in_its_type(dtype):
    layer, exact = twins(hidden_size=32, state_size=8)
    x = tokens(3, 11, 32).to(dtype)
    exact.load_state_dict(layer.to(dtype).state_dict())
    got = layer(x)
    assert got.dtype is dtype
    assert relative_error(got, exact(x.double())) < torch.finfo(dtype).eps


def test_empty_batches_and_rows_give_empty_answers():
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    for shape in ((0, 5, 16), (3, 0, 16)):
        x = torch.zeros(shape, requires_grad=True)
        out = layer(x)
        assert out.shape == shape
        out.sum().backward()
        assert (layer.mixer.D.grad == 0).all()
    with pytest.raises(ValueError, match="at least one token"):
        layer.forward_last(torch.zeros(3, 0, 16))
    assert layer.forward_last(torch.zeros(0, 5, 16)).shape == (0, 16)


def test_strided_inputs_are_read_as_they_are_meant():
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    x = tokens(3, 11, 16)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(x))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({0: lambda x: x[0]}, ValueError, "x must have 3 dimensions, got the shape"),
        ({1: lambda w: w[:-1]}, ValueError, r"in_proj must have the shape \(64, 16\), got \(63"),
        ({2: lambda w: w[:, 0]}, ValueError, "conv_weight must have 3 dimensions"),
        ({8: lambda w: w[:5]}, ValueError, "D must have the shape"),
        ({10: lambda w: w[:5]}, ValueError, "norm_weight must have the shape"),
        ({2: lambda w: w.repeat(1, 1, 9)}, ValueError, "convolution of 1 to 32 tokens, got 36"),
    ],
)
def test_wrong_shapes_are_refused_before_any_memory_is_read(change, error, match):
    given = list(arguments())
    for index, spoil in change.items():
        given[index] = spoil(given[index].detach())
    with pytest.raises(error, match=match):
        layer_op.mamba_layer(*given)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.zeros(2, 3, 16, dtype=torch.int64), TypeError, "got int64"),
        (torch.zeros(2, 3, 16, dtype=torch.float64), TypeError, "got float64; .*sequential"),
        (torch.zeros(2, 3, 16, device="meta"), RuntimeError, "on the CPU, got one on meta"),
    ],
)
def test_tensors_of_other_types_and_devices_are_refused(x, error, match):
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    with pytest.raises(error, match=match):
        layer(x)


def test_steps_that_are_not_numbers_stay_so():
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    x = tokens(2, 5, 16)
    x[0, 2, 3] = float("nan")
    out = layer(x)
    assert out[0, 2:].isnan().all()
    assert not out[0, :2].isnan().any()
    assert not out[1].isnan().any()


def test_tokens_too_large_to_be_normalised_are_no_numbers_afterwards(variant):
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    x = tokens(2, 5, 16)
    x[0, 2] *= 1e30
    assert layer(x)[0, 2:].isnan().all()


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(states, "installed_library", lambda: "no compiler; install gcc")
    with pytest.raises(RuntimeError, match="cannot run: no compiler; install gcc"):
        make_layer("cpu", hidden_size=16, state_size=4)(tokens(1, 2, 16))


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"variant must be one of .*generic, got 'sve'"):
        KernelLibrary(LIBRARY, "sve")


def test_an_adapter_or_a_hook_in_the_mixer_is_run():
    layer = make_layer("cpu", hidden_size=16, state_size=4)
    x, seen = tokens(2, 5, 16), []
    plain = layer(x)
    handle = layer.mixer.out_proj.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-6)
    assert seen
    handle.remove()
    adapted = torch.nn.Sequential(layer.mixer.out_proj, torch.nn.Linear(16, 16))
    layer.mixer.out_proj = adapted
    assert not torch.allclose(layer(x), plain, atol=1e-3)
