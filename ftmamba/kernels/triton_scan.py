"""Triton kernel of the selective scan, and what its kernels have in common.

Written for huge batches of short records: one program is one warp that holds one record's tile of
channels and goes through the tokens in order. The state is a tuple of N vectors in registers, one
for each number of state, so that there are no shuffles and no shared memory. Where the batch is too
small to fill the GPU, a program takes one chunk of the tokens instead (`run_chunks`).

Every vector is one tile of channels, in float32 whatever the tensors' type. A, and states in
memory, are (N, E): channels come last. What a kernel is compiled for is in capitals: strides and
sizes of the model, never those of a batch. Offsets are 64 bits wide between records, and 32 within
a chunk of one. A scan `REVERSE`d goes from the last token to the first. Imported only where Triton
is installed.

The chunks of a long record run side by side because the recurrence is linear in the state. Each
runs from a zero state (`run_chunks`); what those runs leave, each fading by the decay of the chunks
after it, gives the state before every chunk (`join_chunks`); then the chunks run again from there.
The adjoint goes through the same two kernels from the end.
"""

# Triton's language is typed by its compiler, unpacks no tuples, and chooses branches on capitals
# when it compiles.
# mypy: ignore-errors
# ruff: noqa: PLR0913, RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


# Whether kernels run in Python, as TRITON_INTERPRET=1 makes them, and on tensors of any device.
INTERPRETED = not isinstance(sigmoid, triton.JITFunction)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), exact to float32 also where it is small, as time steps are.

    log(1 + e) = 2 atanh(e / (2 + e)), whose series has argument 1/3 at most: no cancellation.
    """
    e = tl.exp2(tl.abs(x) * -LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 13.0 + q * (1.0 / 15.0)
    series = 1.0 / 9.0 + q * (1.0 / 11.0 + q * series)
    series = 1.0 / 5.0 + q * (1.0 / 7.0 + q * series)
    series = 1.0 + q * (1.0 / 3.0 + q * series)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def lanes(channel, condition, E: tl.constexpr):
    """Return the lanes that have a channel, or none unless the condition holds.

    The interpreter cannot take `mask & condition`: it widens a scalar comparison to integers.
    """
    return channel < tl.where(condition, E, 0)


@triton.jit
def load_float(ptr, wanted):
    """Return what is wanted as float32, and zeros."""
    return tl.load(ptr, mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def load_dt(ptr, bias, wanted):
    """Return a token's time steps, zero where not wanted: such a token changes nothing."""
    dt = load_float(ptr, wanted)
    if bias is not None:
        dt = tl.where(wanted, softplus(dt + bias), 0.0)
    return dt


@triton.jit
def load_bias(tensors, channel, in_tile):
    """Return the bias of dt, or None where dt comes after softplus."""
    bias = None
    if tensors.bias is not None:
        bias = load_float(tensors.bias + channel, in_tile)
    return bias


@triton.jit
def zero_state(N: tl.constexpr, TILE: tl.constexpr):
    """Return N vectors of zeros."""
    state = ()
    for _ in tl.static_range(N):
        state = state + (tl.zeros([TILE], tl.float32),)
    return state


@triton.jit
def load_state(ptr, channel, wanted, E: tl.constexpr, N: tl.constexpr):
    """Return the state at ptr (N, E), zero where not wanted."""
    state = ()
    for n in tl.static_range(N):
        state = state + (load_float(ptr + n * E + channel, wanted),)
    return state


@triton.jit
def store_state(ptr, state, channel, wanted, E: tl.constexpr, N: tl.constexpr):
    """Write the state to ptr (N, E)."""
    for n in tl.static_range(N):
        tl.store(ptr + n * E + channel, state[n], mask=wanted)


@triton.jit
def load_rates(A_ptr, channel, in_tile, E: tl.constexpr, N: tl.constexpr):
    """Return A of each number of state, for powers of two."""
    rates = ()
    for n in tl.static_range(N):
        rates = rates + (load_float(A_ptr + n * E + channel, in_tile) * LOG2E,)
    return rates


@triton.jit
def advance(state, rates, dt, x, B_at, N: tl.constexpr):
    """Return exp(dt A) state + x B of one token."""
    advanced = ()
    for n in tl.static_range(N):
        b = tl.load(B_at + n).to(tl.float32)
        advanced = advanced + (tl.exp2(dt * rates[n]) * state[n] + b * x,)
    return advanced


@triton.jit
def read_out(state, C_at, N: tl.constexpr):
    """Return C state of one token."""
    y = tl.load(C_at).to(tl.float32) * state[0]
    for n in tl.static_range(1, N):
        y += tl.load(C_at + n).to(tl.float32) * state[n]
    return y


@triton.jit
def write_out(y_at, y, u, gate_at, skip, in_tile):
    """Write y, or (y + D u) SiLU(gate) where there is a gate."""
    if gate_at is not None:
        gate = load_float(gate_at, in_tile)
        y = (y + skip * u) * gate * sigmoid(gate)
    tl.store(y_at, y.to(y_at.dtype.element_ty), mask=in_tile)


@triton.jit(do_not_specialize=["L", "n_chunks", "programs_a_row", "skipped"])
def scan_forward(
    tensors, y_ptr, states_ptr, L, n_chunks, programs_a_row, skipped, STRIDES: tl.constexpr, E:
    tl.constexpr, N: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, LAST: tl.constexpr,
    REVERSE: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Write y. A program runs the chunks of one record from `skipped` on, or one of them.

    tensors are `triton_launch.ScanTensors`, with the strides of u, dt, B, C and the gate.
    LAST: y, C and the gate have one token, the last. STATES is "none"; "kept": write the state
    before each chunk but the first; or "given": read it.
    """
    u_stride: tl.constexpr = STRIDES[0]
    dt_stride: tl.constexpr = STRIDES[1]
    STEP: tl.constexpr = -1 if REVERSE else 1
    n_tiles = tl.cdiv(E, TILE)
    pid = tl.program_id(0)
    channel = pid % n_tiles * TILE + tl.arange(0, TILE)
    in_tile = channel < E
    item = pid // n_tiles
    row = (item // programs_a_row).to(tl.int64)
    first = skipped + item % programs_a_row
    end = n_chunks if programs_a_row == 1 else first + 1
    border = row * (n_chunks - 1) - 1

    rates = load_rates(tensors.A, channel, in_tile, E, N)
    bias = load_bias(tensors, channel, in_tile)
    skip = None
    if tensors.gate is not None:
        skip = load_float(tensors.D + channel, in_tile)
    state = zero_state(N, TILE)
    if STATES == "given":
        before = lanes(channel, first > 0, E)
        state = load_state(states_ptr + (border + first) * N * E, channel, before, E, N)
    for chunk in range(first, end):
        if STATES == "kept":
            before = lanes(channel, chunk > 0, E)
            store_state(states_ptr + (border + chunk) * N * E, state, channel, before, E, N)
        start = chunk * CHUNK
        length = tl.minimum(CHUNK, L - start)
        token = row * L + (L - 1 - start if REVERSE else start)
        u_row, dt_row = tensors.u + token * u_stride, tensors.dt + token * dt_stride
        B_row, C_row = tensors.B + token * STRIDES[2], tensors.C + token * STRIDES[3]
        next_u = tl.load(u_row + channel, mask=in_tile, other=0.0)
        next_dt = tl.load(dt_row + channel, mask=in_tile, other=0.0)
        for t in range(0, length):
            u, dt = next_u.to(tl.float32), next_dt.to(tl.float32)
            # Ask for the next token now: it arrives while this one is worked on.
            more = lanes(channel, t + 1 < length, E)
            at = (t + 1) * STEP
            next_u = tl.load(u_row + at * u_stride + channel, mask=more, other=0.0)
            next_dt = tl.load(dt_row + at * dt_stride + channel, mask=more, other=0.0)
            if bias is not None:
                dt = softplus(dt + bias)
            at = t * STEP
            state = advance(state, rates, dt, dt * u, B_row + at * STRIDES[2], N)
            if not LAST:
                gate_at = None
                if tensors.gate is not None:
                    gate_at = tensors.gate + (token + at) * STRIDES[4] + channel
                y = read_out(state, C_row + at * STRIDES[3], N)
                write_out(y_ptr + (token + at) * E + channel, y, u, gate_at, skip, in_tile)
    if LAST:
        gate_at = None
        if tensors.gate is not None:
            gate_at = tensors.gate + row * STRIDES[4] + channel
        token = row * L + (0 if REVERSE else L - 1)
        u = load_float(tensors.u + token * u_stride + channel, in_tile)
        y = read_out(state, tensors.C + row * STRIDES[3], N)
        write_out(y_ptr + row * E + channel, y, u, gate_at, skip, in_tile)


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
    tensors, dy_ptr, states_ptr, sums_ptr, L, n_chunks, STRIDES: tl.constexpr, E: tl.constexpr, N:
    tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, LAST: tl.constexpr, REVERSE:
    tl.constexpr,
):  # fmt: skip
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
    states_ptr, sums_ptr, A_ptr, n_slots, E: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr,
    ADJOINT: tl.constexpr,
):  # fmt: skip
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
