"""Watching a loader: what it writes, where it connects to, what it unpickles, how long it takes."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 5.0
LONGEST_WAIT = 60.0
"""Much longer: on a busy machine, a process waits for the processor too."""
MOST_MEMORY = 2**31
DECLARED = (ValueError, OSError)
"""What a loader may raise. `FileNotFoundError` is an `OSError`."""

_WRITES = frozenset(
    ["os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"]
)
_RUNS = frozenset(
    ["pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system",
     "os.exec", "os.fork", "os.posix_spawn"]
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_heard: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if event in _WRITES or event in _RUNS:
        _heard.append(f"{event} {arguments!r:.200}")
    elif event == "open" and arguments[2] & _WRITING:
        _heard.append(f"open for writing {arguments!r:.200}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Give the list of what a block writes, runs and connects to, which is to stay empty."""
    global _heard  # noqa: PLW0603 - an audit hook can neither be removed nor be given anything
    if not hasattr(sys, "_ftmamba_listens"):
        sys.addaudithook(_listen)
        sys._ftmamba_listens = True  # type: ignore[attr-defined]
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


@contextmanager
def limited() -> Iterator[None]:
    """Let a block have no more than some memory beyond what the process already has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class TookTooLong(BaseException):
    """A loader hung; no `Exception`, so that nothing on the way takes it for one of its own."""


@contextmanager
def hurried() -> Iterator[None]:
    """Break off a block that computes for longer than `LONGEST` seconds, or waits far longer."""

    def give_up(*_: object) -> None:
        raise TookTooLong(f"more than {LONGEST} s of computing, or {LONGEST_WAIT} s of waiting")

    timers = [
        (signal.SIGPROF, signal.ITIMER_PROF, LONGEST),
        (signal.SIGALRM, signal.ITIMER_REAL, LONGEST_WAIT),
    ]
    before = [signal.signal(number, give_up) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def refusal(load: Callable[[], object], folder: Path) -> str:
    """Run a loader over a folder; return what it refused it for, or an empty text if it worked.

    Raises:
        AssertionError: it did anything else.
    """
    listing = sorted(folder.parent.rglob("*"))
    message = ""
    with watched() as heard, hurried():
        try:
            load()
        except DECLARED as error:
            message = str(error)
            check_message(message, folder)
    assert heard == []
    assert sorted(folder.parent.rglob("*")) == listing
    return message


def check_message(message: str, folder: Path) -> None:
    """Check that an error says where, and is short enough to be read."""
    assert 20 < len(message) < 2000, message[:3000]
    # A scale that is wrong but possible shows at the first record that it is used on.
    places = ("safetensors", ".json", "catalogue", "known users", "recipe", ", row 0", "record 0")
    assert str(folder) in message or any(place in message for place in places), message
