"""Events from a file of JSON lines, and from the standard input."""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any

from ftmamba.atomic import whole_file
from ftmamba.checks import read_json
from ftmamba.streaming.events import Event, parse_event
from ftmamba.streaming.source import Batch

MOST_LINE_BYTES = 2**20
POLL_SECONDS = 0.2

_MOST_OFFSET_BYTES = 4096
_TAIL_BYTES = 256


@dataclass(frozen=True)
class _Line:
    """A line, and where it begins and the next one does; `data` is None where it is too long."""

    data: bytes | None
    start: int
    end: int


class JsonLinesSource:
    """A file of one event a line, which may grow, and a small file that says how far it was read.

    An event that brings no id gets one of its place and its text, so that a line which is read
    again is recognised.

    Args:
        path: of the events; UTF-8.
        offset_file: keeps the acknowledged position, replaced whole; None begins at `start` each
            time.
        follow: wait for more lines at the end. A last line without an end is read once it has
            one, or is whole JSON where nothing is waited for.
        start: byte at which to begin where no offset is kept.
        sleep: waits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the offset is damaged, or of another file.
    """

    def __init__(
        self,
        path: str | Path,
        offset_file: str | Path | None = None,
        *,
        follow: bool = False,
        start: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"no file of events {str(path)!r}; give one of JSON lines")
        self._offset_file = None if offset_file is None else Path(offset_file)
        self._follow, self._sleep = follow, sleep
        self._file = self._path.open("rb")
        self._place = start
        try:
            self._place = self._committed(start)
        except ValueError:
            self._file.close()
            raise

    @property
    def place(self) -> int:
        """Bytes of the file that have been read."""
        return self._place

    def read(self, most_events: int) -> Batch | None:
        self._check_size()
        events: list[Event] = []
        problems: list[str] = []
        while len(events) + len(problems) < most_events:
            line = self._next_line()
            if line is None:
                break
            self._place = line.end
            if line.data == b"":
                continue
            event, problem = self._parsed(line)
            if event is not None:
                events.append(event)
            else:
                problems.append(problem)
        if not events and not problems and not self._follow:
            return None
        if not events and not problems:
            self._sleep(POLL_SECONDS)
        return Batch(events, problems, self._place)

    def acknowledge(self, batch: Batch) -> None:
        if self._offset_file is None:
            return
        values = {
            "file": self._path.name,
            "offset": batch.position,
            "tail": self._tail(batch.position),
        }
        with whole_file(self._offset_file) as path:
            path.write_text(json.dumps(values) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def _committed(self, start: int) -> int:
        if self._offset_file is None or not self._offset_file.exists():
            return start
        values = read_json(self._offset_file, most_bytes=_MOST_OFFSET_BYTES)
        offset = values.get("offset")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ValueError(f"{str(self._offset_file)!r} has no offset; {self._remedy()}")
        if offset > self._path.stat().st_size or values.get("tail") != self._tail(offset):
            raise ValueError(
                f"{str(self._path)!r} is not the file of which {str(self._offset_file)!r} says "
                f"that {offset} bytes are read: it is shorter or was replaced; {self._remedy()}"
            )
        return offset

    def _remedy(self) -> str:
        return f"give another offset file, or delete it to begin at the start of {self._path.name}"

    def _tail(self, offset: int) -> str:
        """Hash what stands ahead of an offset: another file has something else there."""
        start = max(0, offset - _TAIL_BYTES)
        with self._path.open("rb") as file:
            file.seek(start)
            return blake2b(file.read(offset - start), digest_size=8).hexdigest()

    def _check_size(self) -> None:
        size = self._path.stat().st_size
        if size < self._place:
            raise ValueError(
                f"{str(self._path)!r} has {size} bytes, of which {self._place} were read: it was "
                f"cut or replaced; {self._remedy()}"
            )

    def _next_line(self) -> _Line | None:
        """Return the next line that is whole, None where there is none."""
        self._file.seek(self._place)
        data = self._file.readline(MOST_LINE_BYTES)
        if not data:
            return None
        end = self._place + len(data)
        if data.endswith(b"\n"):
            return _Line(data.strip(), self._place, end)
        if len(data) < MOST_LINE_BYTES:
            whole = not self._follow and _is_json(data)
            return _Line(data.strip(), self._place, end) if whole else None
        return self._too_long()

    def _too_long(self) -> _Line | None:
        """Pass over a line, without keeping it."""
        start = self._place
        while piece := self._file.readline(MOST_LINE_BYTES):
            if piece.endswith(b"\n"):
                return _Line(None, start, self._file.tell())
        return None

    def _parsed(self, line: _Line) -> tuple[Event | None, str]:
        place = f"{self._path.name}, byte {line.start}"
        if line.data is None:
            return None, f"{place}: a line of more than {MOST_LINE_BYTES} bytes"
        mark = blake2b(line.start.to_bytes(8, "little") + line.data, digest_size=8).hexdigest()
        try:
            return parse_event(line.data, event_id=mark), ""
        except ValueError as error:
            return None, f"{place}: {error}"


class StandardInputSource:
    """Events from a pipe: what was delivered is gone, so nothing can be acknowledged.

    A batch is what is there, so that none waits for others. An event that brings no id has none.

    Args:
        stream: to read from; the standard input by default.
    """

    def __init__(self, stream: BufferedReader | None = None) -> None:
        self._stream: Any = sys.stdin.buffer if stream is None else stream
        self._lines: deque[bytes | None] = deque()
        self._rest = b""
        self._number = 0
        self._passing_over = False

    def read(self, most_events: int) -> Batch | None:
        while not self._lines:
            piece = self._stream.read1(2**16)
            if not piece:
                if not self._rest:
                    return None
                piece = b"\n"
            self._take(piece)
        events: list[Event] = []
        problems: list[str] = []
        for _ in range(min(most_events, len(self._lines))):
            self._number += 1
            line = self._lines.popleft()
            try:
                if line is None:
                    raise ValueError(f"a line of more than {MOST_LINE_BYTES} bytes")
                if line.strip():
                    events.append(parse_event(line))
            except ValueError as error:
                problems.append(f"line {self._number}: {error}")
        return Batch(events, problems)

    def acknowledge(self, batch: Batch) -> None:
        """Do nothing: a pipe does not deliver again."""

    def close(self) -> None:
        """Do nothing: the pipe belongs to whoever opened it."""

    def _take(self, piece: bytes) -> None:
        *whole, rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self._lines.append(None if self._passing_over else line)
            self._passing_over = False
        if len(rest) > MOST_LINE_BYTES:
            self._passing_over = True
        self._rest = b" " if self._passing_over else rest


def _is_json(data: bytes) -> bool:
    """Whether a line without an end is whole: no beginning of an object is one."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
