"""How a user's state lies in a file: two halves a slot, of which one is always whole.

A half is written only while the other one holds what it replaces, and says by checksums whether it
was written to its end. So whatever moment a process is killed at, the newer whole half counts.
"""

import json
import struct
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from ftmamba.streaming.store import Stored

MAGIC = b"FTMSTATE"
FORMAT_VERSION = 1
FILE_HEADER_BYTES = 4096

# Checksum of the rest of the head and of the key; checksum, sequence, version, deadline (UTC
# seconds, 0 for none), lengths of key, event ids and state.
_HEAD = struct.Struct("<IIQQdIII")
_CRC_BYTES = 4
_FILE_HEADER = struct.Struct("<8sIQ")
_ALIGNED = 64


@dataclass(frozen=True)
class Half:
    """The head of one half of a slot.

    Attributes:
        start: where the half begins in the file.
        sequence: grows with each write to the slot.
        version: of the state; 0 where the user was deleted.
        deadline: UTC seconds at which the state expires, 0 for never.
        user_key: whose state it is.
        body_crc: checksum of event ids and state.
        ids_bytes: length of the event ids.
        state_bytes: length of the state.
    """

    start: int
    sequence: int
    version: int
    deadline: float
    user_key: bytes
    body_crc: int
    ids_bytes: int
    state_bytes: int

    @property
    def body(self) -> slice:
        """Where event ids and state lie in the file."""
        first = self.start + _HEAD.size + len(self.user_key)
        return slice(first, first + self.ids_bytes + self.state_bytes)


class Written(NamedTuple):
    """One state to write into a half.

    Attributes:
        user_key: whose.
        stored: None marks the user as deleted.
        deadline: see `Half`.
    """

    user_key: bytes
    stored: Stored | None
    deadline: float


def file_header(slot_bytes: int) -> bytes:
    """Return the first bytes of a file of such slots."""
    head = _FILE_HEADER.pack(MAGIC, FORMAT_VERSION, slot_bytes)
    head += crc32(head).to_bytes(_CRC_BYTES, "little")
    return head.ljust(FILE_HEADER_BYTES, b"\0")


def parse_file_header(data: bytes) -> int:
    """Return the bytes of a slot.

    Raises:
        ValueError: the file is none of states, damaged, or of another version; says which.
    """
    size = _FILE_HEADER.size
    if not data.startswith(MAGIC) or len(data) < FILE_HEADER_BYTES:
        raise ValueError("is no file of users' states")
    if crc32(data[:size]).to_bytes(_CRC_BYTES, "little") != data[size : size + _CRC_BYTES]:
        raise ValueError("has a damaged header")
    _, version, slot_bytes = _FILE_HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ValueError(f"has format {version}, this ftmamba reads {FORMAT_VERSION}")
    if slot_bytes < 2 * _HEAD.size:
        raise ValueError(f"has slots of {slot_bytes} bytes, which hold nothing")
    return int(slot_bytes)


def pack(written: Written, sequence: int) -> tuple[bytes, bytes]:
    """Return the two parts of a half: its head with the key, and its body."""
    stored = written.stored
    ids = json.dumps(stored.event_ids).encode() if stored else b""
    state = stored.state if stored else b""
    head = _HEAD.pack(
        0,
        crc32(state, crc32(ids)),
        sequence,
        stored.version if stored else 0,
        written.deadline,
        len(written.user_key),
        len(ids),
        len(state),
    )
    head = head[_CRC_BYTES:] + written.user_key
    return crc32(head).to_bytes(_CRC_BYTES, "little") + head, ids + state


def read_half(file: memoryview, start: int, size: int) -> Half | None:
    """Return the head of a half, None if it was not written to its end."""
    crc, body_crc, sequence, version, deadline, key_bytes, ids_bytes, state_bytes = (
        _HEAD.unpack_from(file, start)
    )
    if sequence == 0 or _HEAD.size + key_bytes + ids_bytes + state_bytes > size:
        return None
    end = start + _HEAD.size + key_bytes
    if crc32(file[start + _CRC_BYTES : end]) != crc:
        return None
    key = bytes(file[end - key_bytes : end])
    return Half(start, sequence, version, deadline, key, body_crc, ids_bytes, state_bytes)


def read_body(file: memoryview, half: Half) -> Stored | None:
    """Return what a half holds, None if it was not written to its end."""
    body = bytes(file[half.body])
    if crc32(body) != half.body_crc or half.version == 0:
        return None
    ids = tuple(json.loads(body[: half.ids_bytes]))
    return Stored(half.version, body[half.ids_bytes :], ids)


def slot_size(half_bytes: int) -> int:
    """Return the bytes of a slot whose halves take so many each."""
    return 2 * -(-half_bytes // _ALIGNED) * _ALIGNED
