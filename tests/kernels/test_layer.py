"""The fused layer equals the layer's definition in float64, values and all gradients."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

from ftmamba.kernels import attach as attach_module
from ftmamba.kernels import layer as layer_module
from ftmamba.kernels.attach import _norm_weights, _parameters
from ftmamba.kernels.layer import carried_layer
from ftmamba.kernels.library import KernelLibrary
from modeling_ftmamba.mixers import MixerState, Part
from modeling_ftmamba.network import FTMambaLayer

from .conftest import (
    LIBRARY,
    compare,
    gradients,
    make_layer,
    relative_error,
    tokens,
    twins,
)

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
VALUES = 2e-6
"""Relative to the largest: a few roundings of products over the hidden size."""


def call_last(layer, x):
    return layer.forward_last(x)


@pytest.fixture
def calls(monkeypatch):
    """Which fused calls were made, by their name and dropout."""
    seen = []

    def watched(name):
        run = getattr(attach_module, name)

        def call(*tensors, **options):
            seen.append((name, options.get("dropout", 0.0)))
            return run(*tensors, **options)

        monkeypatch.setattr(attach_module, name, call)

    watched("fused_layer")
    watched("carried_layer")
    return seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_a_layer_equals_its_definition(variant, shape, last, calls):
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(**fields)
    x = tokens(rows, length, fields["hidden_size"])
    run = call_last if last else FTMambaLayer.__call__
    compare(layer, exact, x, run)
    assert calls == [("fused_layer", 0.0)]


@pytest.mark.parametrize("shape", ["one token", "short rows", "odd sizes", "long rows"])
def test_both_directions_equal_their_definition(variant, shape):
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(bidirectional=True, **fields)
    compare(layer, exact, tokens(rows, length, fields["hidden_size"]), FTMambaLayer.__call__)


class Kept(nn.Dropout):
    """Dropout of numbers that are known."""

    def __init__(self, kept, rate):
        super().__init__(rate)
        self.kept = kept

    def forward(self, x):
        return x * self.kept / (1 - self.p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_dropout_ahead_of_the_sum_equals_its_definition(variant, shape, last, calls):
    rows, length, fields = SHAPES[shape]
    run = call_last if last else FTMambaLayer.__call__
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
    calls.clear()
    compare(layer.train(), exact.eval(), x, seeded)
    assert calls == [("fused_layer", 0.4)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(1, 700), (2, 65), (5, 65), (64, 11)])
@pytest.mark.parametrize(("hidden_size", "rate"), [(20, 0.0), (32, 0.0), (20, 0.4), (32, 0.4)])
def test_three_threads_give_what_one_gives_and_the_same_every_time(
    rows, length, last, hidden_size, rate, threads, monkeypatch
):
    layer = make_layer(hidden_size=hidden_size, state_size=16, residual_dropout=rate)
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


def test_gradients_that_fade_over_a_long_row_are_zero_and_not_denormal(variant):
    layer = make_layer(hidden_size=16, state_size=4)
    x = tokens(1, 2000, 16).requires_grad_()
    with torch.no_grad():
        layer.mixer.dt_proj.bias.fill_(2.0)
    (d_x,) = torch.autograd.grad(layer.forward_last(x).sum(), x)
    tiny = torch.finfo(torch.float32).tiny
    assert (d_x[:, :100] == 0).all()
    assert not ((d_x.abs() < tiny) & (d_x != 0)).any()


OPTIONS = (1e-5, True, False, False, 0.3, 7, True)


def arguments():
    layer = make_layer(hidden_size=16, state_size=4)
    x, norm = tokens(2, 40, 16).requires_grad_(), layer.mixer_norm
    return [x, *_parameters(layer.mixer), norm.weight, norm.bias]


def test_the_operator_passes_the_checks_of_torch():
    given = arguments()
    opcheck(layer_module.mamba_layer, (given, *OPTIONS))
    given[3] = given[10] = given[11] = torch.empty(0)
    opcheck(layer_module.mamba_layer, (given, *OPTIONS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_computes_in_float32_and_answers_in_its_type(dtype):
    layer, exact = twins(hidden_size=32, state_size=8)
    x = tokens(3, 11, 32).to(dtype)
    exact.load_state_dict(layer.to(dtype).state_dict())
    got = layer(x)
    assert got.dtype is dtype
    assert relative_error(got, exact(x.double())) < torch.finfo(dtype).eps


def test_empty_batches_and_rows_give_empty_answers():
    layer = make_layer(hidden_size=16, state_size=4)
    for shape in ((0, 5, 16), (3, 0, 16)):
        x = torch.zeros(shape, requires_grad=True)
        out = layer(x)
        assert out.shape == shape
        out.sum().backward()
        assert (layer.mixer.D.grad == 0).all()
    with pytest.raises(ValueError, match="at least one token"):
        layer.forward_last(torch.zeros(3, 0, 16))
    assert layer.forward_last(torch.zeros(0, 5, 16)).shape == (0, 16)


@pytest.mark.parametrize(
    ("index", "spoil", "match"),
    [
        (0, lambda x: x[0], r"a layer takes .* got x \(40, 16\)"),
        (1, lambda w: w[:-1], r"in_proj must have the shape \(64, 16\), got \(63"),
        (2, lambda w: w[:, 0], r"conv_weight \(32, 4\)"),
        (8, lambda w: w[:5], "D must have the shape"),
        (10, lambda w: w[:5], "norm_weight must have the shape"),
        (2, lambda w: w.repeat(1, 1, 9), "convolution of 1 to 32 tokens, got 36"),
    ],
)
def test_wrong_shapes_are_refused_before_any_memory_is_read(index, spoil, match):
    given = arguments()
    given[index] = spoil(given[index].detach())
    with pytest.raises(ValueError, match=match):
        layer_module.mamba_layer(given, *OPTIONS)


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
    layer = make_layer(hidden_size=16, state_size=4)
    x = tokens(2, 5, 16)
    x[0, 2, 3] = float("nan")
    out = layer(x)
    assert out[0, 2:].isnan().all()
    assert not out[0, :2].isnan().any()
    assert not out[1].isnan().any()


def test_tokens_too_large_to_be_normalised_are_no_numbers_afterwards(variant):
    layer = make_layer(hidden_size=16, state_size=4)
    x = tokens(2, 5, 16)
    x[0, 2] *= 1e30
    assert layer(x)[0, 2:].isnan().all()


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"variant must be one of .*generic.* got 'sve'"):
        KernelLibrary(LIBRARY, "sve")


# Where a sequence is cut, as far as it goes: parts of one token, fewer than the kernel's, a chunk's
# and more than a segment's.
CUTS = (0, 1, 2, 4, 9, 41, 420)


def nothing(layer, rows):
    (inner, state), kept = layer.mixer.A_log.shape, layer.mixer.conv1d.kernel_size[0] - 1
    return MixerState(torch.zeros(rows, inner, kept), torch.zeros(rows, inner, state))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_parts_of_a_sequence_equal_the_whole(variant, threads, shape, n_threads, calls):
    threads(n_threads)
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(**fields)
    layer.eval(), exact.eval()
    x = tokens(rows, length, fields["hidden_size"])
    state, outputs = nothing(layer, rows), []
    ends = [cut for cut in CUTS[1:] if cut < length] + [length]
    with torch.no_grad():
        expected = exact(x.double())
        for start, end in zip([0, *ends], ends, strict=False):
            output, state = layer.advance(x[:, start:end], state, Part())
            outputs.append(output)
        before = MixerState(*(one.double() for one in nothing(layer, rows)))
        _, right = exact.advance(x.double(), before, Part())
    assert calls == [("carried_layer", 0.0)] * len(ends)
    assert relative_error(torch.cat(outputs, 1), expected) < VALUES
    for one, wanted in zip(state, right, strict=True):
        if one.numel():
            assert relative_error(one, wanted) < VALUES


def test_states_of_before_are_left_as_they_were(variant):
    layer = make_layer(hidden_size=16, state_size=4)
    state = MixerState(torch.randn(3, 32, 3), torch.randn(3, 32, 4))
    before = [one.clone() for one in state]
    with torch.no_grad():
        layer.eval().advance(torch.randn(3, 5, 16), state, Part())
    assert all(torch.equal(one, kept) for one, kept in zip(state, before, strict=True))


def test_no_rows_and_narrow_types_are_carried_too():
    layer = make_layer(hidden_size=16, state_size=4)
    parameters, norm = _parameters(layer.mixer), _norm_weights(layer)
    with torch.no_grad():
        none = torch.randn(0, 2, 16)
        out, *state = carried_layer(none, parameters, norm, *nothing(layer, 0), residual=True)
        assert out.shape == (0, 2, 16)
        assert [len(one) for one in state] == [0, 0]
        x = torch.randn(2, 3, 16).bfloat16()
        out, *state = carried_layer(x, parameters, norm, *nothing(layer, 2), residual=True)
    assert out.dtype is torch.bfloat16
    assert {one.dtype for one in state} == {torch.float32}


@pytest.mark.parametrize(
    ("conv", "scan"), [((2, 32, 2), (2, 32, 4)), ((2, 32, 3), (2, 32, 5)), ((1, 32, 3), (2, 32, 4))]
)
def test_states_of_another_shape_are_refused(conv, scan):
    layer = make_layer(hidden_size=16, state_size=4)
    states = torch.zeros(conv), torch.zeros(scan)
    with torch.no_grad(), pytest.raises(ValueError, match="_before must have the shape"):
        carried_layer(torch.randn(2, 1, 16), _parameters(layer.mixer), None, *states, residual=True)


def test_threads_are_lent_by_torch():
    assert KernelLibrary(LIBRARY).has_threads


def test_under_autocast_the_kernel_stays_in_float32():
    layer = make_layer(hidden_size=32, state_size=8)
    x = tokens(3, 11, 32)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    torch.testing.assert_close(got, layer(x))
