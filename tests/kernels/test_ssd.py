"""The SSD mixer in blocks of rows equals its definition in float64, values and all gradients."""

import pytest
import torch
from torch.nn import functional as F

from ftmamba.kernels import ssd_row_blocks
from modeling_ftmamba.mixers import MixerState, Part, selective_scan_reference

from .conftest import compare, gradients, make_layer, relative_error, tokens

# One chunk, and two or three of which the last is not full.
LENGTHS = [1, 2, 9, 61, 130]
SIZES = {"hidden_size": 24, "state_size": 6, "conv_kernel": 3, "ssd_head_size": 8}


def ssd_twins(**fields):
    """A mixer, and its definition in float64 with the same parameters."""
    mixer, exact = (
        make_layer(scan, mixer="ssd", **(SIZES | fields)).mixer for scan in ("auto", "sequential")
    )
    exact.load_state_dict(mixer.state_dict())
    return mixer, exact.double()


def call_last(mixer, x):
    return mixer.forward_last(x)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows_of_a_block", [1, 2, 100])
@pytest.mark.parametrize("run", [torch.nn.Module.__call__, call_last])
def test_blocks_of_rows_equal_the_definition(monkeypatch, length, rows_of_a_block, run):
    mixer, exact = ssd_twins()
    numbers = rows_of_a_block * length * 48 // torch.get_num_threads()
    monkeypatch.setattr(ssd_row_blocks, "_BLOCK_NUMBERS", numbers)
    compare(mixer, exact, tokens(5, length, 24), run, values=2e-6, slopes=2e-5)
    # In float64 without its rounding.
    mixer, x = mixer.double(), tokens(5, length, 24).double().requires_grad_()
    fast, slow = run(mixer, x), run(exact, x)
    node = fast.grad_fn if run is not call_last else fast.grad_fn.next_functions[0][0]
    assert type(node).__name__ == "_MixerBackward"
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-13)
    found = gradients(fast, [x, *mixer.parameters()])
    wanted = gradients(slow, [x, *exact.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_short_and_long_steps_equal_the_recurrence(scale):
    """Small steps, whose decays reach over chunks, and such as leave nothing."""
    mixer, exact = ssd_twins()
    with torch.no_grad():
        for one in (mixer, exact):
            one.dt_bias.fill_(torch.tensor(scale).expm1().log())
    x = tokens(2, 130, 24).double().requires_grad_()
    gate, xBC, raw = exact.in_proj(x).split(exact.splits, -1)
    u, B, C = F.silu(exact.conv1d(F.pad(xBC.mT, (2, 0)))).mT.split(exact.xBC_splits, -1)
    dt, A, D = F.softplus(raw + exact.dt_bias), -exact.A_log.exp(), exact.D
    dt, A, D = (one.repeat_interleave(8, -1) for one in (dt, A, D))
    y, _ = selective_scan_reference(u, dt, A[:, None].expand(-1, 6), B, C)
    expected = exact.out_proj(exact.norm(y + D * u, gate))
    assert relative_error(mixer(x.float()), expected) < 5e-6
    got = mixer.double()(x)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    found = gradients(got, [x, *mixer.parameters()])
    wanted = gradients(expected, [x, *exact.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("decays", [False, True])
def test_tokens_one_by_one_equal_the_whole(decays):
    mixer, exact = ssd_twins()
    gaps = None
    if decays:
        gaps = tokens(3, 9).abs()
        for one in (mixer, exact):
            one.gap_weight = torch.nn.Parameter(torch.full((6,), 0.2, dtype=one.D.dtype))
    x = tokens(3, 9, 24)
    state, outputs = MixerState(torch.zeros(3, 60, 2), torch.zeros(3, 48, 6)), []
    with torch.no_grad():
        before = MixerState(*(one.double() for one in state))
        wide = None if gaps is None else gaps.double()
        expected, right = exact.advance(x.double(), before, Part(None, wide))
        for t in range(9):
            gap = None if gaps is None else gaps[:, t : t + 1]
            output, state = mixer.advance(x[:, t : t + 1], state, Part(None, gap))
            outputs.append(output)
    assert relative_error(torch.cat(outputs, 1), expected) < 2e-6
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(state, right, strict=True))


@pytest.mark.parametrize("length", [1, 9, 130])
@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_the_last_token_with_gaps_equals_the_last_of_all(length, scale):
    mixer, exact = ssd_twins()
    for one in (mixer, exact):
        one.gap_weight = torch.nn.Parameter(torch.full((6,), 0.2, dtype=one.D.dtype))
        torch.nn.init.constant_(one.dt_bias, torch.tensor(scale).expm1().log().item())
    exact.load_state_dict(mixer.state_dict())
    x, gaps = tokens(3, length, 24), tokens(3, length).abs()
    expected = exact(x.double(), gaps.double())[:, -1]
    assert relative_error(mixer.forward_last(x, gaps), expected) < 5e-6
    got = mixer.double().forward_last(x.double(), gaps.double())
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    found, wanted = (
        gradients(y, list(m.parameters())) for y, m in ((got, mixer), (expected, exact))
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_tokens_in_any_memory_order_are_mixed_alike():
    mixer, _ = ssd_twins()
    x = tokens(5, 9, 24)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    torch.testing.assert_close(mixer(strided), mixer(x))
    (d_strided,) = gradients(mixer(strided), [strided])
    (d_x,) = gradients(mixer(x.requires_grad_()), [x])
    torch.testing.assert_close(d_strided, d_x)


def test_no_row_is_answered():
    mixer, _ = ssd_twins()
    assert mixer(torch.zeros(0, 9, 24)).shape == (0, 9, 24)
    assert mixer.forward_last(torch.zeros(0, 9, 24)).shape == (0, 24)


@pytest.mark.parametrize("run", [torch.nn.Module.__call__, call_last])
def test_autocast_is_close_and_graphs_hold_the_definition(run):
    mixer, _ = ssd_twins()
    x = tokens(5, 61, 24)
    wanted = list(mixer.parameters())
    expected = run(mixer, x)
    right = gradients(expected, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(mixer, x)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(mixer, x)
    for got, bound in ((narrow.float(), 0.05), (compiled, 2e-5)):
        assert relative_error(got, expected) < bound
        for a, b in zip(gradients(got, wanted), right, strict=True):
            assert (a - b).norm() < bound * b.norm()
