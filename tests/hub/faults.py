"""What a loopback Hub is told to do wrong: by request, so many times."""

import re
import threading
from dataclasses import dataclass, field

from .messages import Request


@dataclass
class Fault:
    """One thing that goes wrong for requests whose path a pattern is found in.

    Attributes:
        pattern: regular expression over the quoted path.
        method: only of such requests; empty: of any.
        times: how often it strikes before it is spent.
        skip: matching requests to let through first.
        status: answer this instead, without doing what was asked; 0: do it.
        retry_after: the header `Retry-After`, in seconds.
        cut_after: close the connection after so many bytes of the answer's body.
        cut_upload_after: close it after so many bytes of the request's body.
        pause_seconds: wait so long before each KiB of the answer's body.
        lose_answer: do what was asked, then close the connection without a word.
        hang: say nothing until the Hub stops.
        hits: how often it has struck.
    """

    pattern: str
    method: str = ""
    times: int = 1
    skip: int = 0
    status: int = 0
    retry_after: int | None = None
    cut_after: int | None = None
    cut_upload_after: int | None = None
    pause_seconds: float = 0.0
    lose_answer: bool = False
    hang: bool = False
    hits: int = 0

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


@dataclass
class Faults:
    """The faults of a Hub; the first that matches a request strikes."""

    _all: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pattern: str, **options: object) -> Fault:
        """Add a fault; see `Fault` for the options. Returns it, so that its hits can be read."""
        fault = Fault(pattern, **options)  # type: ignore[arg-type]
        with self._lock:
            self._all.append(fault)
        return fault

    def clear(self) -> None:
        """Let everything go well again."""
        with self._lock:
            self._all.clear()

    def strike(self, request: Request) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        with self._lock:
            for fault in self._all:
                wanted = fault.method in ("", request.method)
                if not wanted or not re.search(fault.pattern, request.path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif fault.hits < fault.times:
                    fault.hits += 1
                    return fault
        return None
