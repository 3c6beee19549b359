"""The fused layer over parts of a sequence equals its definition over the whole, in float64."""

import pytest
import torch
from ftmamba.kernels.layer_op import carried_layer

from modeling_ftmamba.mixers import MixerState, Part

from .conftest import relative_error, twins
from .test_layer_op import SHAPES, VALUES, tokens

# Where a sequence is cut, as far as it goes: parts of one token, fewer than the kernel's, a chunk's
# and more than a segment's.
CUTS = (0, 1, 2, 4, 9, 41, 420)


def parts_of(x):
    ends = [cut for cut in CUTS[1:] if cut < x.shape[1]] + [x.shape[1]]
    return [x[:, start:end] for start, end in zip([0, *ends], ends, strict=False)]


def nothing(layer, rows):
    mixer = layer.mixer
    inner, state = mixer.A_log.shape
    kept = mixer.conv1d.kernel_size[0] - 1
    return MixerState(torch.zeros(rows, inner, kept), torch.zeros(rows, inner, state))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_parts_equal_the_whole(variant, threads, shape, n_threads):
    threads(n_threads)
    rows, length, fields = SHAPES[shape]
    layer, exact = twins(**fields)
    layer.eval(), exact.eval()
    x = tokens(rows, length, fields["hidden_size"])
    state, outputs = nothing(layer, rows), []
    with torch.no_grad():
        expected = exact(x.double())
        assert layer._carried(x[:, :1], state, Part()) is not None
        for some in parts_of(x):
            output, state = layer.advance(some, state, Part())
            outputs.append(output)
        _, right = exact.advance(
            x.double(), MixerState(*(one.double() for one in nothing(layer, rows))), Part()
        )
    assert relative_error(torch.cat(outputs, 1), expected) < VALUES
    for one, wanted in zip(state, right, strict=True):
        if one.numel():
            assert relative_error(one, wanted) < VALUES


def test_states_of_before_are_left_as_they_were(variant):
    layer, _ = twins(hidden_size=16, state_size=4)
    state = MixerState(torch.randn(3, 32, 3), torch.randn(3, 32, 4))
    before = [one.clone() for one in state]
    with torch.no_grad():
        layer.eval().advance(torch.randn(3, 5, 16), state, Part())
    assert all(torch.equal(one, kept) for one, kept in zip(state, before, strict=True))


def test_with_gradients_or_ragged_rows_the_layer_is_not_fused():
    layer, _ = twins(hidden_size=16, state_size=4)
    state, x = nothing(layer, 2), torch.randn(2, 3, 16)
    assert layer.eval()._carried(x, state, Part()) is None
    with torch.no_grad():
        assert layer._carried(x, state, Part(torch.tensor([1, 3]))) is None
        assert layer._carried(x, state, Part()) is not None


def test_no_rows_and_narrow_types_are_carried_too():
    layer, _ = twins(hidden_size=16, state_size=4)
    parameters = layer.mixer.fused_parameters()
    with torch.no_grad():
        out, *state = carried_layer(
            torch.randn(0, 2, 16), parameters, None, *nothing(layer, 0), residual=True
        )
        assert out.shape == (0, 2, 16)
        assert [one.shape[0] for one in state] == [0, 0]
        x = torch.randn(2, 3, 16).bfloat16()
        out, *state = carried_layer(x, parameters, None, *nothing(layer, 2), residual=True)
    assert out.dtype is torch.bfloat16
    assert {one.dtype for one in state} == {torch.float32}


@pytest.mark.parametrize(
    ("conv", "scan"), [((2, 32, 2), (2, 32, 4)), ((2, 32, 3), (2, 32, 5)), ((1, 32, 3), (2, 32, 4))]
)
def test_states_of_another_shape_are_refused(conv, scan):
    layer, _ = twins(hidden_size=16, state_size=4)
    with torch.no_grad(), pytest.raises(ValueError, match="the states of 2 records must have"):
        carried_layer(
            torch.randn(2, 1, 16), layer.mixer.fused_parameters(), None, torch.zeros(conv),
            torch.zeros(scan), residual=True,
        )  # fmt: skip
