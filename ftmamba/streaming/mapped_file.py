"""Users' states in one memory-mapped file, which stays valid however its process ends.

A user has a slot of two halves. A half is written only while the other one holds the state that it
replaces, and its checksums show whether it was written to its end. So whenever the process is
killed, the newer complete half counts.
"""

import fcntl
import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import NamedTuple
from zlib import crc32

from ftmamba.streaming.stores import (
    ABSENT,
    Put,
    StateStore,
    Stored,
    check_key,
    check_puts,
    check_ttl,
)

MAGIC = b"FTMSTATE"
FORMAT_VERSION = 1
FILE_HEADER_BYTES = 4096
ROOM_FOR_EVENT_IDS = 256 * 44
"""Bytes of a slot for event ids and a longer key, where `slot_bytes` is not given."""

# Checksum of the rest of the head and of the key; checksum of the body, sequence, version, deadline
# (UTC seconds, 0 for none), lengths of key, event ids and state.
_HEAD = struct.Struct("<IIQQdIII")
_CRC_BYTES = 4
_FILE_HEADER = struct.Struct("<8sIQ")
_ALIGNED = 64
_FEWEST_SLOTS = 16


class _Half(NamedTuple):
    """The head of one half of a slot, which starts at a byte of the file.

    The sequence grows with each write to the slot. A version of 0 marks a deleted user, a deadline
    of 0 a state that does not expire. The checksum is of the body: event ids and state.
    """

    start: int
    sequence: int
    version: int
    deadline: float
    user_key: bytes
    body_crc: int
    ids_bytes: int
    state_bytes: int


class MappedFileStore(StateStore):
    """A store of one process, whose threads may share it; a lock keeps other processes out.

    All slots have the same size. The file doubles when it is full and does not shrink; the slots of
    deleted and expired users are used again.

    Args:
        path: of the file, created if it does not exist.
        slot_bytes: of a new file; 0 fits it to the first state that is put, with room for 256 event
            ids.
        ttl_seconds: a user expires so long after the last put; 0 for never.
        clock: returns UTC seconds.

    Raises:
        ValueError: the file holds something else, or is damaged.
        OSError: another process has it open, or the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        slot_bytes: int = 0,
        ttl_seconds: float = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if slot_bytes < 0:
            raise ValueError(
                f"slot_bytes must be 0 (fit the first state) or more, got {slot_bytes}"
            )
        self._path = Path(path)
        self._ttl = check_ttl(ttl_seconds)
        self._clock = clock
        self._lock = RLock()
        self._slot_bytes = _slot_size(-(-slot_bytes // 2))
        self._slots: dict[bytes, int] = {}
        self._deadlines: dict[bytes, float] = {}
        self._free: list[int] = []
        self._map: mmap.mmap | None = None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._open_slots()
        except (OSError, ValueError):
            self.close()
            raise

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        with self._lock:
            return [self._current(check_key(key)) for key in user_keys]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        with self._lock:
            return [self._put(put) for put in puts]

    def delete(self, user_key: str) -> bool:
        key = check_key(user_key)
        with self._lock:
            found = self._current(key) is not None
            if key in self._slots:
                self._forget(key)
            return found

    def sync(self) -> None:
        """Wait until the disk has everything."""
        with self._lock:
            if self._map is not None:
                self._map.flush()

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._check_open()
            deadlines = self._deadlines.items()
            return iter([key.decode() for key, at in deadlines if not self._expired(at)])

    def close(self) -> None:
        with self._lock:
            if self._map is not None:
                self._map.flush()
                self._map.close()
                self._map = None
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _open_slots(self) -> None:
        """Lock the file and find each user's slot; states are read when they are asked for."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"the states in {str(self._path)!r} are open in another process, and only one may "
                "write; end that one, or use one file per process or one Redis"
            ) from None
        size = os.fstat(self._file).st_size
        if size == 0:
            return
        try:
            self._slot_bytes = _parse_file_header(os.pread(self._file, FILE_HEADER_BYTES, 0))
        except ValueError as error:
            raise ValueError(
                f"{str(self._path)!r} {error}; give another file, or delete it to start again"
            ) from None
        self._map = mmap.mmap(self._file, size)
        for slot in range(self._n_slots()):
            half = next(iter(self._halves(slot)), None)
            if half is None or half.version == 0:
                self._free.append(slot)
            else:
                self._slots[half.user_key] = slot
                self._deadlines[half.user_key] = half.deadline

    def _n_slots(self) -> int:
        size = 0 if self._map is None else len(self._map)
        return max(0, size - FILE_HEADER_BYTES) // self._slot_bytes if size else 0

    def _halves(self, slot: int) -> list[_Half]:
        """Return the halves of a slot whose heads are complete, the newer first."""
        size = self._slot_bytes // 2
        first = FILE_HEADER_BYTES + slot * self._slot_bytes
        with memoryview(self._mapped()) as file:
            found = [_read_half(file, start, size) for start in (first, first + size)]
        halves = [half for half in found if half is not None]
        return sorted(halves, key=lambda half: -half.sequence)

    def _mapped(self) -> mmap.mmap:
        self._check_open()
        assert self._map is not None
        return self._map

    def _check_open(self) -> None:
        if self._file < 0:
            raise ValueError(f"the states in {str(self._path)!r} are closed; open them again")

    def _current(self, key: bytes) -> Stored | None:
        self._check_open()
        slot = self._slots.get(key)
        if slot is None or self._expired(self._deadlines[key]):
            return None
        newest = self._newest(slot, key)
        return None if newest is None else newest[1]

    def _newest(self, slot: int, key: bytes) -> tuple[_Half, Stored] | None:
        """Return the newest complete half of a slot, and what it holds."""
        for half in self._halves(slot):
            with memoryview(self._mapped()) as file:
                stored = _read_body(file, half) if half.user_key == key else None
            if stored is not None and not self._expired(half.deadline):
                return half, stored
        return None

    def _expired(self, deadline: float) -> bool:
        return 0 < deadline <= self._clock()

    def _put(self, put: Put) -> bool:
        key = check_key(put.user_key)
        current = self._current(key)
        if (current.version if current else ABSENT) != put.expected_version:
            return False
        deadline = self._clock() + self._ttl if self._ttl else 0.0
        n_bytes = sum(map(len, _pack(key, put.stored, deadline, 1)))
        if self._slot_bytes == 0:
            self._slot_bytes = _slot_size(n_bytes + ROOM_FOR_EVENT_IDS)
        if n_bytes > self._slot_bytes // 2:
            raise ValueError(
                f"the state of user {put.user_key!r:.80} with its event ids has {n_bytes} bytes, "
                f"half a slot of {str(self._path)!r} has {self._slot_bytes // 2}; create a file "
                "with larger slot_bytes, or keep fewer or shorter event ids"
            )
        slot = self._slots.get(key)
        if slot is None:
            slot = self._free_slot()
        self._write(slot, key, put.stored, deadline)
        self._slots[key] = slot
        self._deadlines[key] = deadline
        return True

    def _write(self, slot: int, key: bytes, stored: Stored | None, deadline: float) -> None:
        """Overwrite the half of a slot that does not hold the current state; None deletes."""
        start = FILE_HEADER_BYTES + slot * self._slot_bytes
        current = self._newest(slot, key) if key in self._slots else None
        halves = self._halves(slot)
        kept = current[0] if current else next(iter(halves), None)
        if kept is not None and kept.start == start:
            start += self._slot_bytes // 2
        sequence = 1 + max((half.sequence for half in halves), default=0)
        head, body = _pack(key, stored, deadline, sequence)
        file, middle = self._mapped(), start + len(head)
        # The head last: as long as the old one is there, its checksum does not fit the new body.
        file[middle : middle + len(body)] = body
        file[start:middle] = head

    def _free_slot(self) -> int:
        if not self._free:
            for key in [key for key, at in self._deadlines.items() if self._expired(at)]:
                self._forget(key)
        if not self._free:
            self._grow()
        return self._free.pop()

    def _forget(self, key: bytes) -> None:
        slot = self._slots[key]
        self._write(slot, key, None, 0.0)
        del self._slots[key], self._deadlines[key]
        self._free.append(slot)

    def _grow(self) -> None:
        """Double the file and allocate its space on the disk: a lack of it later would crash."""
        before = self._n_slots()
        after = max(_FEWEST_SLOTS, 2 * before)
        size = FILE_HEADER_BYTES + after * self._slot_bytes
        if self._map is None:
            os.pwrite(self._file, _file_header(self._slot_bytes), 0)
        try:
            os.posix_fallocate(self._file, 0, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no room for {after} users in {str(self._path)!r}, {size} bytes ({error}); the "
                "states in it are unchanged: free some space",
            ) from error
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self._file, size)
        self._free += range(after - 1, before - 1, -1)


def _file_header(slot_bytes: int) -> bytes:
    head = _FILE_HEADER.pack(MAGIC, FORMAT_VERSION, slot_bytes)
    head += crc32(head).to_bytes(_CRC_BYTES, "little")
    return head.ljust(FILE_HEADER_BYTES, b"\0")


def _parse_file_header(data: bytes) -> int:
    """Return the bytes of a slot; raise ValueError for another file, version, or damage."""
    size = _FILE_HEADER.size
    if not data.startswith(MAGIC) or len(data) < FILE_HEADER_BYTES:
        raise ValueError("is not a file of users' states")
    if crc32(data[:size]).to_bytes(_CRC_BYTES, "little") != data[size : size + _CRC_BYTES]:
        raise ValueError("has a damaged header")
    _, version, slot_bytes = _FILE_HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ValueError(f"has format {version}, this ftmamba reads {FORMAT_VERSION}")
    if slot_bytes < 2 * _HEAD.size:
        raise ValueError(f"has slots of {slot_bytes} bytes, which are too small")
    return int(slot_bytes)


def _slot_size(half_bytes: int) -> int:
    return 2 * -(-half_bytes // _ALIGNED) * _ALIGNED


def _pack(key: bytes, stored: Stored | None, deadline: float, sequence: int) -> tuple[bytes, bytes]:
    """Return the two parts of a half: its head with the key, and its body."""
    ids = json.dumps(stored.event_ids).encode() if stored else b""
    state = stored.state if stored else b""
    version = stored.version if stored else 0
    crc = crc32(state, crc32(ids))
    head = _HEAD.pack(0, crc, sequence, version, deadline, len(key), len(ids), len(state))
    head = head[_CRC_BYTES:] + key
    return crc32(head).to_bytes(_CRC_BYTES, "little") + head, ids + state


def _read_half(file: memoryview, start: int, size: int) -> _Half | None:
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
    return _Half(start, sequence, version, deadline, key, body_crc, ids_bytes, state_bytes)


def _read_body(file: memoryview, half: _Half) -> Stored | None:
    """Return what a half holds, None if it was not written to its end or the user is deleted."""
    start = half.start + _HEAD.size + len(half.user_key)
    body = bytes(file[start : start + half.ids_bytes + half.state_bytes])
    if crc32(body) != half.body_crc or half.version == 0:
        return None
    ids = tuple(json.loads(body[: half.ids_bytes]))
    return Stored(half.version, body[half.ids_bytes :], ids)
