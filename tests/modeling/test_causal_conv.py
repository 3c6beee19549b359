"""The convolution equals torch's, values and gradients."""

import pytest
import torch
from modeling_ftmamba.causal_conv import causal_conv_silu
from torch.nn import functional as F


def definition(x, weight, bias):
    width, channels = weight.shape[-1], len(weight)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=channels).transpose(1, 2))


def draw(*sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(sizes))
    return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_those_of_conv1d(length, width, with_bias):
    x, weight = draw(3, length, 6).requires_grad_(), draw(6, 1, width).requires_grad_()
    bias = draw(6).requires_grad_() if with_bias else None
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None]
    outputs = causal_conv_silu(x, weight, bias), definition(x, weight, bias)
    torch.testing.assert_close(*outputs, rtol=1e-13, atol=1e-13)
    pairs = (torch.autograd.grad(out.square().sum(), wanted) for out in outputs)
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_part_of_a_wider_tensor_is_convolved_as_its_copy():
    wide, weight, bias = draw(3, 9, 20).requires_grad_(), draw(6, 1, 4), draw(6)
    part, copy = wide[..., 5:11], wide[..., 5:11].contiguous()
    got, expected = causal_conv_silu(part, weight, bias), causal_conv_silu(copy, weight, bias)
    assert torch.equal(got, expected)
    (d_got,), (d_expected,) = (torch.autograd.grad(y.sum(), wide) for y in (got, expected))
    assert torch.equal(d_got, d_expected)


def test_no_token_is_answered():
    assert causal_conv_silu(draw(3, 0, 6), draw(6, 1, 4), draw(6)).shape == (3, 0, 6)


def test_the_output_has_the_type_of_the_input():
    x, weight, bias = draw(3, 9, 6, dtype=torch.bfloat16), draw(6, 1, 4), draw(6)
    got = causal_conv_silu(x, weight, bias)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(
        got.double(), definition(x.double(), weight, bias), rtol=0.05, atol=0.05
    )
