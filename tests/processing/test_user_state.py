"""States as bytes: exact, of one user or many, and refused where they do not belong."""

import json
import re
from dataclasses import replace

import pytest
import torch

from ftmamba.streaming.observer import states_from_bytes, states_to_bytes
from modeling_ftmamba.user_state import STATE_VERSION, UserState

FINGERPRINT = "a" * 64
FIELDS = ("conv", "scan", "last", "n_events", "last_time")


def make_state(n_users=3, dtype=torch.float32, n_state=4, kernel=4):
    return UserState(
        conv=torch.randn(2, n_users, 10, kernel - 1, dtype=dtype),
        scan=torch.randn(2, n_users, 10, n_state, dtype=dtype),
        last=torch.randn(n_users, 6),
        n_events=torch.arange(n_users),
        last_time=torch.arange(n_users) * 1_000_000_007 - 1,
    )


def assert_equal(a, b):
    for name in FIELDS:
        assert getattr(a, name).dtype == getattr(b, name).dtype
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def header_of(data):
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def with_header(data, change):
    """Return bytes whose header is changed, and whose body is not."""
    head = header_of(data)
    new = change(head.decode()).encode()
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + data[8 + len(head) :]


@pytest.mark.parametrize("n_users", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_comes_back_bit_for_bit(n_users, dtype):
    state = make_state(n_users, dtype)
    assert_equal(UserState.from_bytes(state.to_bytes("f"), "f"), state)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("kernel", [4, 1])
def test_users_by_themselves_are_the_bytes_and_the_batch_of_one_call_each(dtype, kernel):
    state = make_state(kernel=kernel)
    data = states_to_bytes(state, fingerprint=FINGERPRINT, dtype=dtype)
    alone = [state.select([row]).to_bytes(FINGERPRINT, dtype=dtype) for row in range(3)]
    assert data == alone
    together = states_from_bytes(data, fingerprint=FINGERPRINT)
    assert_equal(together, state if dtype is None else state.to(dtype))
    assert states_to_bytes(state.select([]), fingerprint=FINGERPRINT) == []
    with pytest.raises(ValueError, match="there are no states to read"):
        states_from_bytes([], fingerprint=FINGERPRINT)


def test_states_of_different_batches_are_put_together():
    state = make_state()
    data = [state.select(rows).to_bytes("f") for rows in ([0, 1], [2])]
    assert_equal(states_from_bytes(data, fingerprint="f"), state)
    mixed = [data[1], make_state(1, n_state=5).to_bytes("f")]
    with pytest.raises(ValueError, match="states to concatenate must be of one model"):
        states_from_bytes(mixed, fingerprint="f")


def test_float16_is_half_the_bytes_within_a_thousandth_and_refuses_what_it_cannot_hold():
    state = make_state(100)
    full, half = (state.to_bytes("f", dtype=dtype) for dtype in (None, torch.float16))
    assert len(half) < 0.56 * len(full)
    read = UserState.from_bytes(half, "f")
    assert read.scan.dtype is torch.float16
    torch.testing.assert_close(read.scan.float(), state.scan, rtol=1e-3, atol=1e-6)
    state.scan[0, 5, 0, 0] = 1e6
    match = r"scan holds 1e\+06, .* too large for torch.float16"
    with pytest.raises(ValueError, match=match):
        state.to_bytes("f", dtype=torch.float16)
    with pytest.raises(ValueError, match=match):
        states_to_bytes(state, fingerprint="f", dtype=torch.float16)


def test_a_state_of_four_layers_of_64_takes_less_than_40_kb_in_float16():
    state = UserState(
        torch.randn(4, 1, 128, 3), torch.randn(4, 1, 128, 16), torch.randn(1, 64),
        torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    assert len(state.to_bytes(FINGERPRINT, dtype=torch.float16)) < 21_000


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["conv", "scan", "last"])
def test_numbers_that_are_none_are_neither_written_nor_read(name, value):
    state = make_state()
    data = state.to_bytes("f")
    getattr(state, name).view(-1)[1] = value
    with pytest.raises(ValueError, match=f"the state's {name} is not finite"):
        state.to_bytes("f")
    with pytest.raises(ValueError, match=f"the state's {name} is not finite"):
        states_to_bytes(state, fingerprint="f")
    good = replace(make_state(), **{name: getattr(state, name)})
    body = getattr(good, name).numpy().tobytes()
    header = json.loads(header_of(data))
    start = 8 + len(header_of(data)) + header[name]["data_offsets"][0]
    bad = data[:start] + body + data[start + len(body) :]
    with pytest.raises(ValueError, match=f"hold NaN or Inf in {name}"):
        UserState.from_bytes(bad, "f")


def test_bytes_cut_anywhere_are_refused_in_words():
    data = make_state().to_bytes("f")
    cuts = [*range(0, 900, 7), *range(900, len(data), 101), len(data) - 1]
    for cut in cuts:
        for piece in (data[:cut], data[:cut] + b"\0" * 3, data[cut + 1 :]):
            with pytest.raises(ValueError, match="the bytes of a user's state"):
                UserState.from_bytes(piece, "f")


def test_a_changed_header_is_refused_or_says_the_same():
    data = make_state().to_bytes("f")
    n_refused = 0
    for place in range(8 + len(header_of(data))):
        for byte in (0, 0x22, 0x39, 0xFF):
            changed = data[:place] + bytes([byte]) + data[place + 1 :]
            n_refused += is_refused(changed)
    assert n_refused > 1000


def is_refused(data):
    try:
        UserState.from_bytes(data, "f")
    except ValueError as error:
        if "the bytes of a user's state" not in str(error):
            raise
        return True
    return False


def test_other_weights_and_other_versions_are_refused():
    data = make_state().to_bytes(FINGERPRINT)
    with pytest.raises(ValueError, match="were made by other weights"):
        UserState.from_bytes(data, "b" * 64)
    later = data.replace(
        rf"\"version\": {STATE_VERSION}".encode(), rf"\"version\": {STATE_VERSION + 1}".encode()
    )
    assert later != data
    with pytest.raises(ValueError, match=f"have format 2, this code reads {STATE_VERSION}"):
        UserState.from_bytes(later, FINGERPRINT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r'"scan":{"dtype":"F32","shape":\[2,3,10,4\]', '"scan":{"dtype":"F32","shape":[2,3,4,10]',
         "shapes that do not fit each other or their layout"),
        (r'"scan":{"dtype":"F32","shape":\[2,3,10,4\]', '"scan":{"dtype":"F32","shape":[6,10,4]',
         "hold scan as torch.float32"),
        (r'"scan":{"dtype":"F32"', '"scan":{"dtype":"I32"', "hold scan as torch.int32"),
        (r'"scan":', '"scam":', "are damaged or no state of a user .'scan'"),
        (r"__metadata__", "__metadatum__", "are damaged or no state of a user"),
    ],
)  # fmt: skip
def test_other_contents_are_refused(old, new, message):
    data = make_state().to_bytes("f")
    changed = with_header(data, lambda head: re.sub(old, new, head))
    assert changed != data
    with pytest.raises(ValueError, match=message):
        UserState.from_bytes(changed, "f")


def test_a_negative_number_of_events_is_refused():
    state = replace(make_state(), n_events=torch.tensor([1, -1, 0]))
    with pytest.raises(ValueError, match="hold a negative number of events"):
        UserState.from_bytes(state.to_bytes("f"), "f")
    with pytest.raises(ValueError, match="hold a negative number of events"):
        states_from_bytes(states_to_bytes(state, fingerprint="f"), fingerprint="f")
