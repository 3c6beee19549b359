"""Triton kernel of the selective scan's gradients.

No state but those between chunks of tokens comes from the forward pass. A program runs a chunk
again and keeps the state before each span of a few tokens in a scratch of its own, small enough for
the caches; then, from the last span to the first, it takes one number of state after the other and
runs the span's tokens forwards and backwards in registers. Sums over channels (for B and C) are
written tile by tile, sums over records (for A, D and the bias) program by program, and both are
added up outside: no atomics, hence the same result every time.

See `scan_triton_kernels` for what is common to all kernels.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0915, RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

from .scan_triton_kernels import (
    advance,
    lanes,
    load_bias,
    load_dt,
    load_float,
    load_rates,
    load_state,
    store_state,
)
from .scan_triton_span import differentiate, finish, load_span


@triton.jit
def keep_states(
    kept_ptr,
    state,
    tensors,
    token,
    channel,
    in_tile,
    n_spans,
    STRIDES: tl.constexpr,
    E: tl.constexpr,
    N: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
):
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
    tensors,
    gradients,
    dy_ptr,
    states_ptr,
    adjoints_ptr,
    scratch_ptr,
    n_rows,
    L,
    n_chunks,
    programs_a_row,
    n_spans,
    STRIDES: tl.constexpr,
    D_GATE_STRIDE: tl.constexpr,
    E: tl.constexpr,
    N: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    SPAN: tl.constexpr,
    LAST: tl.constexpr,
    REVERSE: tl.constexpr,
):
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
                kept_ptr,
                state,
                tensors,
                row_token,
                channel,
                in_tile,
                spans,
                STRIDES,
                E,
                N,
                TILE,
                SPAN,
                STEP,
            )
            tl.debug_barrier()
            for back_span in range(0, spans):
                number = spans - 1 - back_span
                left = length - number * SPAN
                last = tl.where(chunk == n_chunks - 1, left - 1, -1)
                token = row_token + number * SPAN * STEP
                y_token = row if LAST else token
                span = load_span(
                    tensors,
                    dy_ptr,
                    token,
                    y_token,
                    channel,
                    in_tile,
                    left,
                    last,
                    STRIDES,
                    E,
                    SPAN,
                    LAST,
                    STEP,
                )
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
                        h,
                        dh,
                        load_float(tensors.A + n * E + channel, in_tile),
                        span,
                        sums,
                        tensors.B + token * STRIDES[2] + n,
                        tensors.C + y_token * STRIDES[3] + n,
                        dC_at + n,
                        left,
                        last,
                        STRIDES,
                        TILE,
                        SPAN,
                        LAST,
                        STEP,
                    )
                    tl.store(adjoint_ptr + n * TILE + lane, dh)
                    tl.store(totals_at + n, totals, mask=has_total)
                    dA = load_float(dA_at + n * E, in_tile)
                    tl.store(dA_at + n * E, dA + d_rate, mask=in_tile)
                more_D, more_bias = finish(
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
                    STRIDES,
                    D_GATE_STRIDE,
                    E,
                    SPAN,
                    LAST,
                    STEP,
                )
                dD += more_D
                d_bias += more_bias
                tl.debug_barrier()
    if tensors.gate is not None:
        parts_at = group.to(tl.int64) * E + channel
        tl.store(gradients.D + parts_at, dD, mask=in_tile)
        tl.store(gradients.bias + parts_at, d_bias, mask=in_tile)
