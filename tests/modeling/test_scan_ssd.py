"""The SSD scan equals its definition run in float64, values and all gradients."""

import math

import pytest
import torch
from modeling_ftmamba.scan_ssd import LONGEST_ON_CPU, SSDInputs, ssd, ssd_last, ssd_reference

# Rows, tokens, heads, channels a head, state; one chunk, whole chunks, and a last one in part.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 2, 3, 4, 5),
    (3, LONGEST_ON_CPU, 2, 4, 8),
    (2, LONGEST_ON_CPU + 1, 2, 8, 4),
    (1, 3 * LONGEST_ON_CPU, 3, 2, 1),
    (2, 130, 3, 4, 2),
]
# Small steps, whose decays reach over chunks; those of one token; and such as leave nothing.
SCALES = [0.02, 1.0, 30.0]
# The exponents of decays reach 50, and the rounding of an exponent is an error of its exp.
TYPES = [(torch.float64, 5e-13), (torch.float32, 5e-6)]


def inputs(shape, dtype, scale=1.0):
    batch, length, heads, width, state = shape
    generator = torch.Generator().manual_seed(length)

    def draw(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    tensors = (
        draw(batch, length, heads, width),
        scale * draw(batch, length, heads).exp(),
        -draw(heads).exp(),
        draw(batch, length, state),
        draw(batch, length, state),
        draw(heads),
    )
    return SSDInputs(*(tensor.to(dtype).requires_grad_() for tensor in tensors))


def gradients(output, tensors):
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return SSDInputs(*torch.autograd.grad((output * weights).sum(), tensors))


def relative_error(got, expected):
    """Return the largest error over the largest value; below 1e-20 all values are nothing."""
    error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-20)
    return error.nan_to_num(math.inf).item()


def errors(got, expected):
    pairs = zip(SSDInputs._fields, got, expected, strict=True)
    return {name: relative_error(a, b) for name, a, b in pairs if b.abs().max() > 0}


def test_two_tokens_by_hand():
    u, dt = torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([[[0.5], [0.25]]])
    B, C = torch.tensor([[[4.0], [5.0]]]), torch.tensor([[[6.0], [7.0]]])
    tensors = SSDInputs(u, dt, torch.tensor([-1.0]), B, C, torch.tensor([10.0]))
    first = 0.5 * 4 * 2
    second = math.exp(-0.25) * first + 0.25 * 5 * 3
    expected = torch.tensor([6 * first + 20, 7 * second + 30]).view(1, 2, 1, 1)
    for scan in (ssd_reference, ssd):
        torch.testing.assert_close(scan(tensors), expected)
    torch.testing.assert_close(ssd_last(tensors), expected[:, -1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_values_and_gradients_equal_the_definition_in_float64(shape, dtype, bound, scale):
    exact, tensors = inputs(shape, torch.float64, scale), inputs(shape, dtype, scale)
    expected, got = ssd_reference(exact), ssd(tensors)
    assert relative_error(got, expected) < bound / 10
    found = errors(gradients(got, tensors), gradients(expected, exact))
    assert {"u", "dt", "B", "C", "D"} <= set(found)
    assert max(found.values()) < bound, found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_last_token_alone_equals_the_last_of_all(shape, dtype, bound, scale):
    exact, tensors = inputs(shape, torch.float64, scale), inputs(shape, dtype, scale)
    expected, got = ssd_reference(exact)[:, -1], ssd_last(tensors)
    assert relative_error(got, expected) < bound / 10
    found = errors(gradients(got, tensors), gradients(expected, exact))
    assert {"u", "dt", "B", "C", "D"} <= set(found)
    assert max(found.values()) < bound, found


@pytest.mark.parametrize("length", [7, 60])
def test_a_step_of_zero_adds_nothing_and_has_its_gradient(length):
    def with_zeros(dtype):
        tensors = inputs((2, length, 2, 4, 3), dtype)
        dt = tensors.dt.detach().clone()
        dt[:, 1::3] = 0
        return tensors._replace(dt=dt.requires_grad_())

    exact, tensors = with_zeros(torch.float64), with_zeros(torch.float32)
    expected, got = ssd_reference(exact), ssd(tensors)
    assert relative_error(got, expected) < 1e-6
    found = errors(gradients(got, tensors), gradients(expected, exact))
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("scan", [ssd, ssd_last])
def test_bfloat16_is_rounded_a_few_times_only(scan):
    tensors = inputs((2, 100, 2, 8, 4), torch.bfloat16)
    exact = SSDInputs(*(tensor.detach().double() for tensor in tensors))
    got, expected = scan(tensors), ssd_reference(exact)
    assert got.dtype is torch.bfloat16
    assert relative_error(got, expected if scan is ssd else expected[:, -1]) < 2**-7
    assert all(d.dtype is torch.bfloat16 for d in gradients(got, tensors))


def test_the_state_is_float32_for_bfloat16_inputs():
    """In bfloat16 a sum of equal parts would be 4 % off after 4,000, and stand still soon."""
    ones = torch.ones(1, 4000, 1, dtype=torch.bfloat16)
    rate, skip = torch.tensor([[-1e-4], [0.0]], dtype=torch.bfloat16)
    tensors = SSDInputs(ones[..., None], 0.01 * ones, rate, ones, ones, skip)
    expected = ssd_reference(SSDInputs(*(tensor.double() for tensor in tensors)))
    assert relative_error(ssd(tensors), expected) < 2**-7


@pytest.mark.parametrize("scan", [ssd, ssd_last])
def test_autocast_leaves_the_scan_alone(scan):
    tensors = inputs((2, 60, 2, 8, 4), torch.float32)
    expected = scan(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        got = scan(tensors)
        found = gradients(got, tensors)
    assert torch.equal(got, expected)
    assert all(map(torch.equal, found, gradients(expected, tensors)))


def test_no_token_and_no_row_are_answered():
    assert ssd(inputs((3, 0, 2, 4, 5), torch.float32)).shape == (3, 0, 2, 4)
    tensors = inputs((0, 60, 2, 4, 5), torch.float32)
    assert ssd(tensors).shape == (0, 60, 2, 4)
    assert ssd_last(tensors).shape == (0, 2, 4)
    assert gradients(ssd(tensors), tensors).A.tolist() == [0, 0]
    with pytest.raises(ValueError, match="needs at least one token"):
        ssd_last(inputs((3, 0, 2, 4, 5), torch.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.rand(2, 5)}, r"dt must have shape \(2, 5, 3\) beside u of.*got \(2, 5\)"),
        ({"A": torch.rand(4)}, r"A must have shape \(3,\)"),
        ({"C": torch.rand(2, 5, 7)}, r"C must have shape \(2, 5, 6\)"),
        ({"u": torch.rand(2, 5, 12)}, r"u must have shape \(batch, tokens, heads, channels\)"),
        ({"dt": torch.full((2, 5, 3), -0.5)}, "dt must not be negative, got -0.5; apply softplus"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    tensors = inputs((2, 5, 3, 4, 6), torch.float32)._replace(**change)
    for scan in (ssd, ssd_last):
        with pytest.raises(ValueError, match=message):
            scan(tensors)


def test_a_nan_step_comes_out_as_nan_in_its_row_alone():
    tensors = inputs((3, 60, 1, 2, 3), torch.float32)
    tensors.dt.data[1, 50] = math.nan
    bad = ssd(tensors).isnan().any(-1)[..., 0]
    assert bad[1, 50:].all()
    assert not bad[[0, 2]].any()


def test_only_the_inputs_are_kept_for_the_gradient():
    kept = []
    tensors = inputs((1, 100, 2, 4, 3), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()), lambda tensor: tensor
    ):
        ssd(tensors)
    assert kept
    assert sum(kept) <= sum(tensor.numel() for tensor in tensors)
