"""Inputs, definitions in float64, and the comparison of Triton's results with them."""

import torch
from torch.nn import functional as F

from ftmamba.kernels.library import MambaParameters
from modeling_ftmamba.mixers import selective_scan_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: (1e-6, 2e-6), torch.bfloat16: (2e-2, 4e-2), torch.float16: (3e-3, 6e-3)}
"""Of values and gradients, relative to the largest."""
SIZES = {"hidden": 4, "inner": 6, "states": 3, "rank": 2, "width": 4}


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def scan_inputs(B, L, E, N, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B + 10 * L)
    tensors = [
        draw(generator, B, L, E),
        draw(generator, B, L, E).exp() * 0.3,
        -draw(generator, E, N).exp(),
        draw(generator, B, L, N),
        draw(generator, B, L, N),
    ]
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in tensors]


def defined(tensors):
    return selective_scan_reference(*tensors)[0]


def doubles(tensors):
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def relative_error(got, expected):
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    return error.item() if expected.abs().max() > 0 else got.abs().max().item()


def assert_equal_to(expected, exact, got, tensors):
    """Compare outputs and the gradients of all tensors, which are of one type."""
    value_bound, gradient_bound = BOUNDS[tensors[0].dtype]
    assert got.dtype is tensors[0].dtype
    assert relative_error(got, expected) < value_bound
    weights = torch.linspace(-1, 2, got.numel(), dtype=torch.float64, device=DEVICE).view_as(got)
    gradients = torch.autograd.grad(got, tensors, weights.to(got.dtype))
    wanted = torch.autograd.grad(expected, exact, weights.to(got.dtype).double())
    errors = [relative_error(a, b) for a, b in zip(gradients, wanted, strict=True)]
    assert all(a.dtype is b.dtype for a, b in zip(gradients, tensors, strict=True))
    assert max(errors) < gradient_bound, errors
    return max(errors)


def mixer_parameters(dtype=torch.float32, **sizes):
    D, E, N, R, K = (SIZES | sizes).values()
    generator = torch.Generator().manual_seed(7)
    shapes = [(2 * E, D), (E, 1, K), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,), (D, E)]
    drawn = [0.6 * draw(generator, *shape) for shape in shapes]
    return MambaParameters(*(x.to(DEVICE, dtype).requires_grad_() for x in drawn))


def hidden(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return draw(generator, *shape).to(DEVICE, dtype).requires_grad_()


def mixer_definition(hidden_BLD, parameters, *, last, reverse):
    """Compute a mixer with torch's own convolution and softplus."""
    (E, N), R = parameters.A_log.shape, parameters.dt_weight.shape[1]
    tokens = hidden_BLD.flip(1) if reverse else hidden_BLD
    x, gate = F.linear(tokens, parameters.in_proj).chunk(2, -1)
    width = parameters.conv_weight.shape[-1]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    total = F.conv1d(padded, parameters.conv_weight, parameters.conv_bias, groups=E)
    u = F.silu(total).transpose(1, 2)
    dt, B, C = F.linear(u, parameters.x_proj).split([R, N, N], -1)
    dt = F.softplus(F.linear(dt, parameters.dt_weight, parameters.dt_bias))
    y = defined((u, dt, -torch.exp(parameters.A_log), B, C)) + parameters.D * u
    mixed = F.linear(y * F.silu(gate), parameters.out_proj)
    mixed = mixed.flip(1) if reverse else mixed
    return mixed[:, -1] if last else mixed
