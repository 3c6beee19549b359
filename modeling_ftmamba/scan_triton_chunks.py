"""Triton kernels that let the chunks of a long record run side by side.

The recurrence is linear in the state. Each chunk runs from a zero state (`run_chunks`); what those
runs leave, each fading by the decay of the chunks after it, gives the state before every chunk
(`join_chunks`); then the chunks run again from there. The adjoint goes through the same two kernels
from the end. See `scan_triton_kernels` for what is common to all kernels.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

from .scan_triton_kernels import (
    LOG2E,
    advance,
    lanes,
    load_bias,
    load_dt,
    load_float,
    load_rates,
    sigmoid,
    store_state,
    zero_state,
)


@triton.jit
def retreat(adjoint, rates, dt, dy, C_at, N: tl.constexpr):
    """Return exp(dt A) (adjoint + C dy) of one token: what the state before it does to the loss."""
    retreated = ()
    for n in tl.static_range(N):
        c = tl.load(C_at + n).to(tl.float32)
        retreated = retreated + (tl.exp2(dt * rates[n]) * (adjoint[n] + c * dy),)
    return retreated


@triton.jit(do_not_specialize=["L", "n_chunks"])
def run_chunks(
    tensors,
    dy_ptr,
    states_ptr,
    sums_ptr,
    L,
    n_chunks,
    STRIDES: tl.constexpr,
    E: tl.constexpr,
    N: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Write each chunk's state after running from zero, and the sum of its time steps.

    Slot s, of n_chunks - 1, is for the border between the chunks s and s + 1. It gets what chunk s
    leaves; where there is dy, the adjoint that chunk s + 1 leaves when run backwards.
    """
    ADJOINT: tl.constexpr = dy_ptr is not None
    STEP: tl.constexpr = -1 if REVERSE != ADJOINT else 1
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    channel = pid % n_tiles * TILE + tl.arange(0, TILE)
    in_tile = channel < E
    item = pid // n_tiles
    row = (item // (n_chunks - 1)).to(tl.int64)
    chunk = item % (n_chunks - 1) + (1 if ADJOINT else 0)
    length = tl.minimum(CHUNK, L - chunk * CHUNK)
    start = chunk * CHUNK + (length - 1 if ADJOINT else 0)
    token = row * L + (L - 1 - start if REVERSE else start)
    rates = load_rates(tensors.A, channel, in_tile, E, N)
    bias = load_bias(tensors, channel, in_tile)
    state = zero_state(N, TILE)
    steps = tl.zeros([TILE], tl.float32)
    for t in range(0, length):
        own = token + t * STEP
        dt = load_dt(tensors.dt + own * STRIDES[1] + channel, bias, in_tile)
        steps += dt
        if ADJOINT:
            # The gradient of the last token alone has one token, and so have its C and gate.
            if LAST:
                own = row
                wanted = lanes(channel, (t == 0) & (chunk == n_chunks - 1), E)
            else:
                wanted = in_tile
            dy = load_float(dy_ptr + own * E + channel, wanted)
            if tensors.gate is not None:
                gate = load_float(tensors.gate + own * STRIDES[4] + channel, wanted)
                dy = dy * gate * sigmoid(gate)
            state = retreat(state, rates, dt, dy, tensors.C + own * STRIDES[3], N)
        else:
            x = dt * load_float(tensors.u + own * STRIDES[0] + channel, in_tile)
            state = advance(state, rates, dt, x, tensors.B + own * STRIDES[2], N)
    slot = item.to(tl.int64)
    store_state(states_ptr + slot * N * E, state, channel, in_tile, E, N)
    tl.store(sums_ptr + slot * E + channel, steps, mask=in_tile)


@triton.jit(do_not_specialize=["n_slots"])
def join_chunks(
    states_ptr,
    sums_ptr,
    A_ptr,
    n_slots,
    E: tl.constexpr,
    N: tl.constexpr,
    TILE: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """Add to each slot what reaches it from the slots before it; ADJOINT, from those after it.

    Then slot s holds the state before chunk s + 1; ADJOINT, the adjoint after chunk s.
    """
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    channel = pid % n_tiles * TILE + tl.arange(0, TILE)
    in_tile = channel < E
    n = pid // n_tiles % N
    row = (pid // n_tiles // N).to(tl.int64)
    rate = load_float(A_ptr + n * E + channel, in_tile) * LOG2E
    state = tl.zeros([TILE], tl.float32)
    for i in range(0, n_slots):
        slot = row * n_slots + (n_slots - 1 - i if ADJOINT else i)
        state_at = states_ptr + (slot * N + n) * E + channel
        steps = load_float(sums_ptr + slot * E + channel, in_tile)
        state = tl.exp2(steps * rate) * state + load_float(state_at, in_tile)
        tl.store(state_at, state, mask=in_tile)
