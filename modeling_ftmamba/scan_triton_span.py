"""What the Triton kernel of the gradients does with a span of a few tokens, in registers.

`left` is the number of the chunk's tokens from the span's first on, and `last` the place of the
record's last token, or -1 in all chunks but the last. See `scan_triton_backward`.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

from .scan_triton_kernels import LOG2E, lanes, load_bias, load_dt, load_float, sigmoid
from .scan_triton_sums import fold, sums_by_lane


@triton.jit
def load_span(
    tensors,
    dy_ptr,
    token,
    y_token,
    channel,
    in_tile,
    left,
    last,
    STRIDES: tl.constexpr,
    E: tl.constexpr,
    SPAN: tl.constexpr,
    LAST: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return dt, dt u and the gradient of y before the gate, of each token."""
    bias = load_bias(tensors, channel, in_tile)
    dt_at, u_at = tensors.dt + token * STRIDES[1], tensors.u + token * STRIDES[0]
    dy_at = dy_ptr + y_token * E + channel
    y_step: tl.constexpr = 0 if LAST else STEP
    dts, xs, dys = (), (), ()
    for j in tl.static_range(SPAN):
        inside = lanes(channel, j < left, E)
        dt = load_dt(dt_at + j * STEP * STRIDES[1] + channel, bias, inside)
        x = dt * load_float(u_at + j * STEP * STRIDES[0] + channel, inside)
        has_dy = lanes(channel, j == last, E) if LAST else inside
        dy = load_float(dy_at + j * y_step * E, has_dy)
        if tensors.gate is not None:
            gate_at = tensors.gate + y_token * STRIDES[4] + channel
            gate = load_float(gate_at + j * y_step * STRIDES[4], has_dy)
            dy = dy * gate * sigmoid(gate)
        dts, xs, dys = dts + (dt,), xs + (x,), dys + (dy,)
    return dts, xs, dys


@triton.jit
def differentiate(
    state,
    adjoint,
    rate,
    span,
    sums,
    B_at,
    C_at,
    dC_at,
    left,
    last,
    STRIDES: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    LAST: tl.constexpr,
    STEP: tl.constexpr,
):
    """Go through a span with one number of state.

    span is what `load_span` returned. To the sums of each token is added: to ys, what the state
    gives to y; to gs, the gradient of dt u; to es, that of dt through the decay.

    Returns:
        the adjoint before the span, the gradient of A, the sums, and in lane i the gradient of
        token i's B; not LAST, in lanes 2i and 2i + 1 those of its B and C.
    """
    dts, xs, dys = span
    ys, gs, es = sums
    states, decays, bs = (state,), (), ()
    for j in tl.static_range(SPAN):
        b = load_float(B_at + j * STEP * STRIDES[2], j < left)
        decay = tl.exp2(dts[j] * (rate * LOG2E))
        state = decay * state + b * xs[j]
        states, decays, bs = states + (state,), decays + (decay,), bs + (b,)
    y_step: tl.constexpr = 0 if LAST else STEP
    d_rate = tl.zeros_like(state)
    new_ys, new_gs, new_es, products = (), (), (), ()
    for j in tl.static_range(SPAN - 1, -1, -1):
        has_dy = j == last if LAST else j < left
        c = load_float(C_at + j * y_step * STRIDES[3], has_dy)
        adjoint += c * dys[j]
        if LAST:
            products = (fold(adjoint * xs[j], TILE),) + products
            if has_dy:
                tl.store(dC_at, tl.sum(states[j + 1] * dys[j]))
        else:
            of_C = fold(states[j + 1] * dys[j], TILE)
            products = (fold(adjoint * xs[j], TILE), of_C) + products
        new_ys = (ys[j] + c * states[j + 1],) + new_ys
        new_gs = (gs[j] + adjoint * bs[j],) + new_gs
        adjoint *= decays[j]
        through_decay = adjoint * states[j]
        new_es = (es[j] + through_decay * rate,) + new_es
        d_rate += through_decay * dts[j]
    totals = sums_by_lane(products, SPAN if LAST else 2 * SPAN)
    return adjoint, d_rate, (new_ys, new_gs, new_es), totals


@triton.jit
def finish(
    tensors,
    gradients,
    dy_ptr,
    span,
    sums,
    token,
    y_token,
    channel,
    in_tile,
    left,
    last,
    STRIDES: tl.constexpr,
    d_gate_stride: tl.constexpr,
    E: tl.constexpr,
    SPAN: tl.constexpr,
    LAST: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write a span's gradients of u, dt and the gate; return those of D and the bias."""
    dts, _, dys = span
    ys, gs, es = sums
    bias = load_bias(tensors, channel, in_tile)
    u_at, dt_at = tensors.u + token * STRIDES[0], tensors.dt + token * STRIDES[1]
    du_at, d_dt_at = gradients.u + token * E + channel, gradients.dt + token * E + channel
    y_step: tl.constexpr = 0 if LAST else STEP
    dD = tl.zeros_like(gs[0])
    d_bias = tl.zeros_like(gs[0])
    for j in tl.static_range(SPAN):
        inside = lanes(channel, j < left, E)
        u = load_float(u_at + j * STEP * STRIDES[0] + channel, inside)
        du = gs[j] * dts[j]
        d_dt = gs[j] * u + es[j]
        if bias is not None:
            raw = load_float(dt_at + j * STEP * STRIDES[1] + channel, inside) + bias
            d_dt = tl.where(inside, d_dt * sigmoid(raw), 0.0)
            d_bias += d_dt
        if tensors.gate is not None:
            has_dy = lanes(channel, j == last, E) if LAST else inside
            gate_at = tensors.gate + y_token * STRIDES[4] + channel
            gate = load_float(gate_at + j * y_step * STRIDES[4], has_dy)
            dy = load_float(dy_ptr + y_token * E + channel + j * y_step * E, has_dy)
            skip = load_float(tensors.D + channel, in_tile)
            slope = sigmoid(gate) * (1.0 + gate * (1.0 - sigmoid(gate)))
            d_gate = dy * (ys[j] + skip * u) * slope
            d_gate_at = gradients.gate + y_token * d_gate_stride + channel
            d_gate_at += j * y_step * d_gate_stride
            tl.store(d_gate_at, d_gate.to(gradients.gate.dtype.element_ty), mask=has_dy)
            du += skip * dys[j]
            dD += dys[j] * u
        tl.store(du_at + j * STEP * E, du.to(gradients.u.dtype.element_ty), mask=inside)
        tl.store(d_dt_at + j * STEP * E, d_dt.to(gradients.dt.dtype.element_ty), mask=inside)
    return dD, d_bias
