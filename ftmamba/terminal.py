"""Texts of others on a terminal: what could steer it, or reorder its lines, is shown as an escape.

Titles, keys, names of files and errors may come from a stranger's checkpoint or events.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

_STEERING = (
    r"\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f"  # control characters but for \t, \n and \r
    r"\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # order, no width
    r"\ud800-\udfff\U000e0000-\U000e007f"  # halves of a pair, tags
)
_OF_A_CELL = re.compile(rf"[{_STEERING}]")
# A progress bar begins what it writes with \r.
_OF_A_STREAM = re.compile(rf"(?!^)\r|[{_STEERING}]")


def printable(text: str) -> str:
    """Return a text on one line that a terminal only shows, with escapes as JSON writes them."""
    return _OF_A_CELL.sub(_escape, re.sub(r"[ \t\n\r]+", " ", text))


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


class _Printable:
    """A stream of text that writes escapes for what could steer a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        text = _OF_A_STREAM.sub(_escape, text)
        try:
            text.encode(self._stream.encoding or "utf-8")
        except UnicodeEncodeError:
            text = re.sub(r"[^\x00-\x7f]", _escape, text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let what the block prints and logs, whatever it is, show and not steer."""
    streams: list[Any] = [_Printable(sys.stdout), _Printable(sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield
