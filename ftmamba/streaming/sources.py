"""Where events come from: the contract of every source, files of JSON lines and standard input."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from ftmamba.atomic import whole_file
from ftmamba.checks import read_json
from ftmamba.streaming.events import Refused, UserEvent, parse_event

MOST_LINE_BYTES = 2**20
POLL_SECONDS = 0.2

_MOST_OFFSET_BYTES = 4096
_TAIL_BYTES = 256


@dataclass(frozen=True)
class Batch:
    """Events that a source has delivered and that are to be acknowledged.

    Attributes:
        events: in the order of arrival.
        problems: messages that are not valid events.
        position: of the last message.
    """

    events: Sequence[UserEvent]
    problems: Sequence[Refused] = field(default_factory=tuple)
    position: str = ""

    def __len__(self) -> int:
        return len(self.events) + len(self.problems)


class Source(Protocol):
    """Delivers every event at least once, in one order: what was not acknowledged comes again.

    A position is a text; positions sort like the messages they follow.
    """

    @property
    def name(self) -> str:
        """The same for the same messages, and for no others; empty if they cannot be read again."""
        ...

    @property
    def bookmark(self) -> str:
        """The position that was acknowledged last, empty for none."""
        ...

    def seek(self, position: str) -> None:
        """Continue after a position, with the first message after the empty one."""
        ...

    def lost_after(self, position: str, /) -> str:
        """Return in words why messages after a position cannot be read any more, or nothing."""
        ...

    def read(self, most_events: int) -> Batch | None:
        """Return up to so many events.

        Returns:
            An empty batch if there are none at the moment; None at the end, if the source has one.
        """
        ...

    def acknowledge(self, batch: Batch) -> None:
        """Mark a batch, and all before it, as not to be delivered again."""
        ...

    def close(self) -> None:
        """Release all resources. Closing twice is fine."""
        ...


class JsonLinesSource:
    """A file of one event per line, which may grow, and a small file with the offset read so far.

    An event without an id gets a hash of its offset and text, so a line that is read again is
    recognised.

    Args:
        path: of the events; UTF-8.
        offset_file: keeps the acknowledged offset, replaced atomically; None for none.
        follow: wait for more lines at the end. A last line without a newline is read once it has
            one; without `follow`, if it is complete JSON.
        sleep: waits.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the offset is damaged, or of another file.
    """

    def __init__(
        self,
        path: str | Path,
        offset_file: str | Path | None = None,
        *,
        follow: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"no file of events {str(path)!r}; give one of JSON lines")
        self._offset_file = None if offset_file is None else Path(offset_file)
        self._follow, self._sleep = follow, sleep
        self._offset = self._committed()
        self._acknowledged, self._name = self._offset, ""
        self._file = self._path.open("rb")

    @property
    def name(self) -> str:
        """A hash of the first line, empty before there is one."""
        if not self._name:
            with self._path.open("rb") as file:
                line = file.readline(MOST_LINE_BYTES)
            if line.endswith(b"\n") or len(line) == MOST_LINE_BYTES or _is_json(line):
                self._name = f"file {_mark(0, line.strip())}"
        return self._name

    @property
    def bookmark(self) -> str:
        return self._position(self._acknowledged) if self._acknowledged else ""

    def seek(self, position: str) -> None:
        self._offset = int(position.partition(" ")[0] or 0)
        if position and position != self._position(self._offset):
            raise ValueError(
                f"{str(self._path)!r} is not the file whose first {self._offset} bytes are in the "
                "states: it was cut or replaced; use another store for other events"
            )

    def lost_after(self, _position: str, /) -> str:
        """Return nothing: a file that was cut is refused when it is read."""
        return ""

    def read(self, most_events: int) -> Batch | None:
        size = self._path.stat().st_size
        if size < self._offset:
            raise ValueError(
                f"{str(self._path)!r} has {size} bytes, of which {self._offset} were read: it was "
                f"cut or replaced; {self._remedy()}"
            )
        events: list[UserEvent] = []
        problems: list[Refused] = []
        while len(events) + len(problems) < most_events:
            start, line = self._offset, self._next_line()
            if line is None:
                break
            try:
                if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
                    raise ValueError(f"a line of more than {MOST_LINE_BYTES} bytes")
                if line.strip():
                    mark, position = _mark(start, line.strip()), f"{self._offset:020}"
                    events.append(parse_event(line, event_id=mark, position=position))
            except ValueError as error:
                problems.append(_malformed(f"{self._path.name}, byte {start}", error, line))
        if not events and not problems:
            if not self._follow:
                return None
            self._sleep(POLL_SECONDS)
        return Batch(events, problems, self._position(self._offset))

    def acknowledge(self, batch: Batch) -> None:
        if self._offset_file is None:
            return
        offset = self._acknowledged = int(batch.position.partition(" ")[0])
        values = {"file": self._path.name, "offset": offset, "tail": self._tail(offset)}
        with whole_file(self._offset_file) as path:
            path.write_text(json.dumps(values) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def _committed(self) -> int:
        if self._offset_file is None or not self._offset_file.exists():
            return 0
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

    def _position(self, offset: int) -> str:
        """Return an offset with a hash of what is before it."""
        return f"{offset:020} {self._tail(offset)}"

    def _remedy(self) -> str:
        return f"give another offset file, or delete it to start {self._path.name} again"

    def _tail(self, offset: int) -> str:
        """Hash the bytes before an offset: another file has others there."""
        start = max(0, offset - _TAIL_BYTES)
        with self._path.open("rb") as file:
            file.seek(start)
            return blake2b(file.read(offset - start), digest_size=8).hexdigest()

    def _next_line(self) -> bytes | None:
        """Return the next complete line, cut if it is too long, and move on; None without one."""
        self._file.seek(self._offset)
        line = piece = self._file.readline(MOST_LINE_BYTES)
        while len(piece) == MOST_LINE_BYTES and not piece.endswith(b"\n"):
            piece = self._file.readline(MOST_LINE_BYTES)
        is_complete = piece.endswith(b"\n") or (
            piece is line and not self._follow and _is_json(line)
        )
        if not is_complete:
            return None
        self._offset = self._file.tell()
        return line


class RefusedFile:
    """Appends refused messages to a file, one JSON object a line, made with the first of them."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __call__(self, refused: Sequence[Refused]) -> None:
        """Write them; they are on the disk when it returns."""
        # What people did is their own: others could read a file that `open` makes.
        self._path.touch(0o600)
        with self._path.open("a+b") as file:
            # A process that was killed may have left the beginning of a line.
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            lines = [b"\n"] if size and file.read(1) != b"\n" else []
            lines += [one.to_json().encode(errors="replace") + b"\n" for one in refused]
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())


class StandardInputSource:
    """Events from a pipe, which cannot deliver them again, so acknowledging does nothing.

    A batch holds what has arrived, without waiting for more. An event without an id gets none.

    Args:
        stream: to read from; the standard input by default.
    """

    def __init__(self, stream: BufferedReader | None = None) -> None:
        self._stream: Any = sys.stdin.buffer if stream is None else stream
        self._lines: deque[bytes | None] = deque()
        self._rest = b""
        self._number = 0
        self._is_too_long = False
        self.name = self.bookmark = ""

    def seek(self, position: str) -> None:
        """Do nothing: a pipe is read once."""

    def lost_after(self, _position: str, /) -> str:
        """Return nothing: a pipe has no positions."""
        return ""

    def read(self, most_events: int) -> Batch | None:
        while not self._lines:
            piece = self._stream.read1(2**16)
            if not piece:
                if not self._rest:
                    return None
                piece = b"\n"
            self._split(piece)
        events: list[UserEvent] = []
        problems: list[Refused] = []
        for _ in range(min(most_events, len(self._lines))):
            self._number += 1
            line = self._lines.popleft()
            try:
                if line is None:
                    raise ValueError(f"a line of more than {MOST_LINE_BYTES} bytes")
                if line.strip():
                    events.append(parse_event(line))
            except ValueError as error:
                problems.append(_malformed(f"line {self._number}", error, line or b""))
        return Batch(events, problems)

    def acknowledge(self, batch: Batch) -> None:
        """Do nothing: a pipe does not deliver again."""

    def close(self) -> None:
        """Do nothing: the pipe belongs to the caller."""

    def _split(self, piece: bytes) -> None:
        *whole, rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self._lines.append(None if self._is_too_long else line)
            self._is_too_long = False
        if len(rest) > MOST_LINE_BYTES:
            self._is_too_long = True
        self._rest = b" " if self._is_too_long else rest


def _malformed(where: str, error: ValueError, line: bytes) -> Refused:
    return Refused("malformed", f"{where}: {error}", line.decode(errors="replace").strip())


def _mark(start: int, line: bytes) -> str:
    return blake2b(start.to_bytes(8, "little") + line, digest_size=8).hexdigest()


def _is_json(data: bytes) -> bool:
    """Whether a line without a newline is complete: no prefix of an object is valid JSON."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
