"""Users' states in one memory-mapped file, which outlives its process however that ends."""

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import RLock

from ftmamba.streaming.mapped_slots import (
    FILE_HEADER_BYTES,
    Half,
    Written,
    file_header,
    pack,
    parse_file_header,
    read_body,
    read_half,
    slot_size,
)
from ftmamba.streaming.store import ABSENT, Put, Stored, check_key, check_puts, check_ttl

ROOM_FOR_EVENT_IDS = 256 * 44
"""Bytes that a slot leaves for event ids and a longer key, where nobody says how large it is."""

_FEWEST_SLOTS = 16


class MappedFileStore:
    """A store of one process, whose threads may share it; a lock keeps a second process out.

    A slot is of one size, that of the model's state, and holds the newest and the one before. The
    file doubles when it is full, and does not shrink; deleted and expired users leave their room to
    others.

    Args:
        path: of the file, made if need be.
        slot_bytes: of a new file; 0 fits it to the first state that is put, and leaves room for
            256 event ids.
        ttl_seconds: a user is forgotten so long after the last put; 0 for never.
        clock: tells UTC seconds.

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
        self._slot_bytes = slot_size(-(-slot_bytes // 2))
        self._slots: dict[bytes, int] = {}
        self._deadlines: dict[bytes, float] = {}
        self._free: list[int] = []
        self._map: mmap.mmap | None = None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            self._open_slots()
        except (OSError, ValueError):
            self.close()
            raise

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        with self._lock:
            return [self._current(check_key(key)) for key in user_keys]

    def put(self, user_key: str, stored: Stored, expected_version: int) -> bool:
        return self.put_many([Put(user_key, stored, expected_version)])[0]

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
        """Wait until the disk holds it."""
        with self._lock:
            if self._map is not None:
                self._map.flush()

    def __len__(self) -> int:
        return len(self._keys())

    def __iter__(self) -> Iterator[str]:
        return iter([key.decode() for key in self._keys()])

    def close(self) -> None:
        with self._lock:
            if self._map is not None:
                self._map.flush()
                self._map.close()
                self._map = None
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"the states in {str(self._path)!r} are open in another process, and one writes at "
                "a time; end that one, or give each its own file or one Redis"
            ) from None

    def _open_slots(self) -> None:
        """Find out whose state lies where; the states themselves are read when asked for."""
        size = os.fstat(self._file).st_size
        if size == 0:
            return
        try:
            self._slot_bytes = parse_file_header(os.pread(self._file, FILE_HEADER_BYTES, 0))
        except ValueError as error:
            raise ValueError(
                f"{str(self._path)!r} {error}; give another file, or delete it to start anew"
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

    def _halves(self, slot: int) -> list[Half]:
        """Return the halves of a slot whose heads are whole, the newer first."""
        size = self._slot_bytes // 2
        first = FILE_HEADER_BYTES + slot * self._slot_bytes
        with memoryview(self._mapped()) as file:
            found = [read_half(file, start, size) for start in (first, first + size)]
        halves = [half for half in found if half is not None]
        return sorted(halves, key=lambda half: -half.sequence)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"the states in {str(self._path)!r} are closed; open them again")
        return self._map

    def _current(self, key: bytes) -> Stored | None:
        self._check_open()
        slot = self._slots.get(key)
        if slot is None or self._expired(self._deadlines[key]):
            return None
        whole = self._newest_whole(slot, key)
        return None if whole is None else whole[1]

    def _newest_whole(self, slot: int, key: bytes) -> tuple[Half, Stored] | None:
        for half in self._halves(slot):
            with memoryview(self._mapped()) as file:
                stored = read_body(file, half) if half.user_key == key else None
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
        self._write(Written(key, put.stored, deadline))
        return True

    def _write(self, written: Written) -> None:
        n_bytes = sum(map(len, pack(written, 1)))
        if self._slot_bytes == 0:
            self._slot_bytes = slot_size(n_bytes + ROOM_FOR_EVENT_IDS)
        if n_bytes > self._slot_bytes // 2:
            raise ValueError(
                f"the state of user {written.user_key.decode()!r:.80} with its event ids takes "
                f"{n_bytes} bytes, half a slot of {str(self._path)!r} has {self._slot_bytes // 2}; "
                "make a file with larger slot_bytes, or keep fewer or shorter event ids"
            )
        slot = self._slots.get(written.user_key)
        if slot is None:
            slot = self._free_slot()
        self._write_half(slot, written)
        self._slots[written.user_key] = slot
        self._deadlines[written.user_key] = written.deadline

    def _write_half(self, slot: int, written: Written) -> None:
        """Write over the half of a slot that does not hold what counts now."""
        first = FILE_HEADER_BYTES + slot * self._slot_bytes
        key = written.user_key
        counting = self._newest_whole(slot, key) if key in self._slots else None
        heads = self._halves(slot)
        kept = counting[0] if counting else (heads[0] if heads else None)
        start = first
        if kept is not None and kept.start == first:
            start = first + self._slot_bytes // 2
        head, body = pack(written, 1 + max((half.sequence for half in heads), default=0))
        file, middle = self._mapped(), start + len(head)
        # The head last: while it is another's, the checksum of the body gives it away.
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
        self._write_half(slot, Written(key, None, 0.0))
        del self._slots[key], self._deadlines[key]
        self._free.append(slot)

    def _grow(self) -> None:
        """Double the file; its room is taken on the disk now, for later would be a crash."""
        before = self._n_slots()
        after = max(_FEWEST_SLOTS, 2 * before)
        size = FILE_HEADER_BYTES + after * self._slot_bytes
        if self._map is None:
            os.pwrite(self._file, file_header(self._slot_bytes), 0)
        try:
            os.posix_fallocate(self._file, 0, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no room for {after} users in {str(self._path)!r}, {size} bytes ({error}); those "
                "in it are as they were: free some space",
            ) from error
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self._file, size)
        self._free += range(after - 1, before - 1, -1)

    def _keys(self) -> list[bytes]:
        with self._lock:
            self._check_open()
            return [key for key, at in self._deadlines.items() if not self._expired(at)]

    def _check_open(self) -> None:
        if self._file < 0:
            raise ValueError(f"the states in {str(self._path)!r} are closed; open them again")
