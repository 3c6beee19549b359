"""States as bytes: exact, of one user or many, and refused where they do not belong."""

import json
import re
from dataclasses import replace

import pytest
import torch

from ftmamba.streaming.state_bytes import (
    STATE_VERSION,
    from_bytes,
    states_from_bytes,
    states_to_bytes,
    to_bytes,
)
from modeling_ftmamba.user_state import UserState


def make_state(n_users=3, dtype=torch.float32, n_state=4, kernel=4):
    return UserState(
        conv=torch.randn(2, n_users, 10, kernel - 1, dtype=dtype),
        scan=torch.randn(2, n_users, 10, n_state, dtype=dtype),
        last=torch.randn(n_users, 6),
        n_events=torch.arange(n_users),
        last_time=torch.arange(n_users) * 1_000_000_007 - 1,
    )


def assert_equal(a, b):
    for name, x in a.tensors().items():
        assert x.dtype == b.tensors()[name].dtype
        assert torch.equal(x, b.tensors()[name]), name


def header_of(data):
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@pytest.mark.parametrize("n_users", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_comes_back_bit_for_bit(n_users, dtype):
    state = make_state(n_users, dtype)
    assert_equal(from_bytes(to_bytes(state, "f"), "f"), state)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("kernel", [4, 1])
def test_users_by_themselves_are_the_bytes_and_the_batch_of_one_call_each(dtype, kernel):
    state = make_state(kernel=kernel)
    data = states_to_bytes(state, fingerprint="f", dtype=dtype)
    assert data == [to_bytes(state.select([row]), "f", dtype=dtype) for row in range(3)]
    together = states_from_bytes(data, fingerprint="f")
    assert_equal(together, state if dtype is None else state.to(dtype))
    assert states_to_bytes(state.select([]), fingerprint="f") == []
    with pytest.raises(ValueError, match="there are no states to read"):
        states_from_bytes([], fingerprint="f")


def test_states_of_different_batches_are_put_together():
    state = make_state()
    data = [to_bytes(state.select(rows), "f") for rows in ([0, 1], [2])]
    assert_equal(states_from_bytes(data, fingerprint="f"), state)
    with pytest.raises(ValueError, match="states to concatenate must be of one model"):
        states_from_bytes([data[1], to_bytes(make_state(1, n_state=5), "f")], fingerprint="f")


def test_float16_is_half_the_bytes_within_a_thousandth_and_refuses_what_it_cannot_hold():
    state = make_state(100)
    full, half = (to_bytes(state, "f", dtype=dtype) for dtype in (None, torch.float16))
    assert len(half) < 0.56 * len(full)
    read = from_bytes(half, "f")
    assert read.scan.dtype is torch.float16
    torch.testing.assert_close(read.scan.float(), state.scan, rtol=1e-3, atol=1e-6)
    state.scan[0, 5, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"scan holds 1e\+06, .* too large for torch.float16"):
        states_to_bytes(state, fingerprint="f", dtype=torch.float16)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["conv", "scan", "last"])
def test_numbers_that_are_none_are_neither_written_nor_read(name, value):
    state = make_state()
    data = to_bytes(state, "f")
    state.tensors()[name].view(-1)[1] = value
    with pytest.raises(ValueError, match=f"the state's {name} is not finite"):
        to_bytes(state, "f")
    with pytest.raises(ValueError, match=f"the state's {name} is not finite"):
        states_to_bytes(state, fingerprint="f")
    body = state.tensors()[name].numpy().tobytes()
    head = header_of(data)
    start = 8 + len(head) + json.loads(head)[name]["data_offsets"][0]
    bad = data[:start] + body + data[start + len(body) :]
    with pytest.raises(ValueError, match=f"hold NaN or Inf in {name}"):
        from_bytes(bad, "f")


def is_refused(data):
    try:
        from_bytes(data, "f")
    except ValueError as error:
        if "the bytes of a user's state" not in str(error):
            raise
        return True
    return False


def test_bytes_cut_anywhere_or_changed_are_refused_in_words():
    data = to_bytes(make_state(), "f")
    for cut in [*range(0, 900, 7), *range(900, len(data), 101), len(data) - 1]:
        assert all(map(is_refused, (data[:cut], data[:cut] + b"\0" * 3, data[cut + 1 :])))
    changed = [
        data[:index] + bytes([byte]) + data[index + 1 :]
        for index in range(8 + len(header_of(data)))
        for byte in (0, 0x22, 0x39, 0xFF)
    ]
    assert sum(map(is_refused, changed)) > 1000


def test_other_weights_and_other_versions_are_refused():
    data = to_bytes(make_state(), "a" * 64)
    with pytest.raises(ValueError, match="were made by other weights"):
        from_bytes(data, "b" * 64)
    own, other = (rf"\"version\": {STATE_VERSION + more}".encode() for more in (0, 1))
    assert own in data
    with pytest.raises(ValueError, match=f"have format 2, this code reads {STATE_VERSION}"):
        from_bytes(data.replace(own, other), "a" * 64)


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
    data = to_bytes(make_state(), "f")
    head = re.sub(old, new, header_of(data).decode()).encode()
    body = data[8 + len(header_of(data)) :]
    assert head != header_of(data)
    head += b" " * (-len(head) % 8)
    with pytest.raises(ValueError, match=message):
        from_bytes(len(head).to_bytes(8, "little") + head + body, "f")


def test_a_negative_number_of_events_is_refused():
    state = replace(make_state(), n_events=torch.tensor([1, -1, 0]))
    with pytest.raises(ValueError, match="hold a negative number of events"):
        from_bytes(to_bytes(state, "f"), "f")
    with pytest.raises(ValueError, match="hold a negative number of events"):
        states_from_bytes(states_to_bytes(state, fingerprint="f"), fingerprint="f")
