"""Triton kernel of the selective scan's gradients.

No state but those between chunks of tokens comes from the forward pass. A program runs a chunk
again and keeps the state before each span of a few tokens in a scratch of its own, small enough for
the caches; then, from the last span to the first, it takes one number of state after the other and
runs the span's tokens forwards and backwards in registers. Sums over channels (for B and C) are
written tile by tile, sums over records (for A, D and the bias) program by program, and both are
added up outside: no atomics, hence the same result every time.

See `triton_scan` for what is common to all kernels.

A span's `left` is the number of the chunk's tokens from its first on, and `last` the index of the
record's last token, or -1 in all chunks but the last.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0915, RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

from .triton_scan import (
    LOG2E,
    advance,
    lanes,
    load_bias,
    load_dt,
    load_float,
    load_rates,
    load_state,
    sigmoid,
    store_state,
)


@triton.jit
def fold(vector, TILE: tl.constexpr):
    """Return 32 numbers with the sum of a tile's 32 or 64."""
    if TILE == 64:
        left, right = tl.split(tl.reshape(vector, [32, 2]))
        vector = left + right
    return vector


@triton.jit
def halve(vectors, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Return half as many vectors: lanes without the bit go on with the first of each two.

    Each lane hands its part of the other one to the lane that differs from it in the bit.
    """
    kept = ()
    first = (lane & BIT) == 0
    for i in tl.static_range(0, COUNT - 1, 2):
        own = tl.where(first, vectors[i], vectors[i + 1])
        other = tl.where(first, vectors[i + 1], vectors[i])
        kept = kept + (own + tl.gather(other, lane ^ BIT, 0),)
    if COUNT % 2 == 1:
        odd = vectors[COUNT - 1]
        kept = kept + (odd + tl.gather(odd, lane ^ BIT, 0),)
    return kept


@triton.jit
def sums_by_lane(vectors, COUNT: tl.constexpr):
    """Return the sum of vector i in lane i, of at most 32 vectors of 32 numbers.

    Summed one by one they would shuffle five times as often.
    """
    lane = tl.arange(0, 32)
    vectors = halve(vectors, lane, 1, COUNT)
    vectors = halve(vectors, lane, 2, (COUNT + 1) // 2)
    vectors = halve(vectors, lane, 4, (COUNT + 3) // 4)
    vectors = halve(vectors, lane, 8, (COUNT + 7) // 8)
    vectors = halve(vectors, lane, 16, (COUNT + 15) // 16)
    return vectors[0]


@triton.jit
def load_span(
    tensors, dy_ptr, token, y_token, channel, in_tile, left, last, STRIDES: tl.constexpr, E:
    tl.constexpr, SPAN: tl.constexpr, LAST: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
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
    state, adjoint, rate, span, sums, B_at, C_at, dC_at, left, last, STRIDES: tl.constexpr, TILE:
    tl.constexpr, SPAN: tl.constexpr, LAST: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
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
    tensors, gradients, dy_ptr, span, sums, token, y_token, channel, in_tile, left, last, STRIDES:
    tl.constexpr, d_gate_stride: tl.constexpr, E: tl.constexpr, SPAN: tl.constexpr, LAST:
    tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
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


@triton.jit
def keep_states(
    kept_ptr, state, tensors, token, channel, in_tile, n_spans, STRIDES: tl.constexpr, E:
    tl.constexpr, N: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Run a chunk from `state` to its last span, and keep the state before each span."""
    lane = tl.arange(0, TILE)
    u_row, dt_row = tensors.u + token * STRIDES[0], tensors.dt + token * STRIDES[1]
    B_row = tensors.B + token * STRIDES[2]
    rates = load_rates(tensors.A, channel, in_tile, E, N)
    bias = load_bias(tensors, channel, in_tile)
    for span in range(0, n_spans - 1):
        store_state(kept_ptr + span * N * TILE, state, lane, lane < TILE, TILE, N)
        for t in range(span * SPAN, span * SPAN + SPAN):
            at = t * STEP
            dt = load_dt(dt_row + at * STRIDES[1] + channel, bias, in_tile)
            x = dt * load_float(u_row + at * STRIDES[0] + channel, in_tile)
            state = advance(state, rates, dt, x, B_row + at * STRIDES[2], N)
    store_state(kept_ptr + (n_spans - 1) * N * TILE, state, lane, lane < TILE, TILE, N)


@triton.jit(do_not_specialize=["n_rows", "L", "n_chunks", "programs_a_row", "n_spans"])
def scan_backward(
    tensors, gradients, dy_ptr, states_ptr, adjoints_ptr, scratch_ptr, n_rows, L, n_chunks,
    programs_a_row, n_spans, STRIDES: tl.constexpr, D_GATE_STRIDE: tl.constexpr, E: tl.constexpr,
    N: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr, LAST:
    tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write all gradients; what is given and the flags are those of `scan_forward`.

    Program p takes tile p % n_tiles of item p // n_tiles and of every `n_groups`-th after it; an
    item is a record, or one chunk of it where programs_a_row is not 1: then `adjoints` has what
    comes from the chunks after it. n_spans is the number in the longest chunk. The gradients of B
    and C have a part for each tile, those of A, D and the bias one for each group; A's is zero.
    """
    STEP: tl.constexpr = -1 if REVERSE else 1
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    tile, group, n_groups = pid % n_tiles, pid // n_tiles, tl.num_programs(0) // n_tiles
    lane = tl.arange(0, TILE)
    channel = tile * TILE + lane
    in_tile = channel < E
    # Where each lane of `sums_by_lane` puts its sum.
    sum_lane = tl.arange(0, 32)
    own = sum_lane if LAST else sum_lane // 2
    # The scratch: the adjoint, then the state before each span.
    adjoint_ptr = scratch_ptr + pid.to(tl.int64) * (n_spans + 1) * N * TILE
    kept_ptr = adjoint_ptr + N * TILE
    dA_at = gradients.A + group.to(tl.int64) * N * E + channel
    part = tile.to(tl.int64) * n_rows
    dD, d_bias = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)

    for item in range(group, n_rows * programs_a_row, n_groups):
        row = (item // programs_a_row).to(tl.int64)
        first = item % programs_a_row
        end = n_chunks if programs_a_row == 1 else first + 1
        border = row * (n_chunks - 1) - 1
        followed = lanes(channel, end < n_chunks, E)
        adjoint = load_state(adjoints_ptr + (border + end) * N * E, channel, followed, E, N)
        store_state(adjoint_ptr, adjoint, lane, lane < TILE, TILE, N)
        for back in range(0, end - first):
            chunk = end - 1 - back
            start = chunk * CHUNK
            length = tl.minimum(CHUNK, L - start)
            spans = tl.cdiv(length, SPAN)
            row_token = row * L + (L - 1 - start if REVERSE else start)
            before = lanes(channel, chunk > 0, E)
            state = load_state(states_ptr + (border + chunk) * N * E, channel, before, E, N)
            keep_states(
                kept_ptr, state, tensors, row_token, channel, in_tile, spans, STRIDES, E, N, TILE,
                SPAN, STEP,
            )  # fmt: skip
            tl.debug_barrier()
            for back_span in range(0, spans):
                number = spans - 1 - back_span
                left = length - number * SPAN
                last = tl.where(chunk == n_chunks - 1, left - 1, -1)
                token = row_token + number * SPAN * STEP
                y_token = row if LAST else token
                span = load_span(
                    tensors, dy_ptr, token, y_token, channel, in_tile, left, last, STRIDES, E,
                    SPAN, LAST, STEP,
                )  # fmt: skip
                zeros = ()
                for _ in tl.static_range(SPAN):
                    zeros = zeros + (tl.zeros([TILE], tl.float32),)
                sums = (zeros, zeros, zeros)
                dB_at = gradients.B + (part * L + token) * N
                dC_at = gradients.C + (part * (1 if LAST else L) + y_token) * N
                totals_at = dB_at + own * STEP * N
                if not LAST:
                    totals_at = tl.where(sum_lane % 2 == 0, totals_at, dC_at + own * STEP * N)
                has_total = (own < SPAN) & (own < left)
                for n in range(0, N):
                    kept_at = kept_ptr + (number * N + n) * TILE + lane
                    h, dh = tl.load(kept_at), tl.load(adjoint_ptr + n * TILE + lane)
                    dh, d_rate, sums, totals = differentiate(
                        h, dh, load_float(tensors.A + n * E + channel, in_tile), span, sums,
                        tensors.B + token * STRIDES[2] + n, tensors.C + y_token * STRIDES[3] + n,
                        dC_at + n, left, last, STRIDES, TILE, SPAN, LAST, STEP,
                    )  # fmt: skip
                    tl.store(adjoint_ptr + n * TILE + lane, dh)
                    tl.store(totals_at + n, totals, mask=has_total)
                    dA = load_float(dA_at + n * E, in_tile)
                    tl.store(dA_at + n * E, dA + d_rate, mask=in_tile)
                more_D, more_bias = finish(
                    tensors, gradients, dy_ptr, span, sums, token, y_token, channel, in_tile, left,
                    last, STRIDES, D_GATE_STRIDE, E, SPAN, LAST, STEP,
                )  # fmt: skip
                dD += more_D
                d_bias += more_bias
                tl.debug_barrier()
    if tensors.gate is not None:
        parts_at = group.to(tl.int64) * E + channel
        tl.store(gradients.D + parts_at, dD, mask=in_tile)
        tl.store(gradients.bias + parts_at, d_bias, mask=in_tile)
