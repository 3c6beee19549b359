"""What a loopback Hub is asked and what it answers, and the record of both."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .accounts import Account


@dataclass
class Request:
    """One request; `status`, `fault` and the times are filled in as it is answered.

    Attributes:
        method: such as "GET".
        path: as sent, still quoted.
        query: the last value of each parameter.
        headers: names in lower case.
        body: all of it.
        origin: "hub", or "storage" where large files lie.
        account: whose token came with it, None without one.
        status: of the answer; 0 where the connection was cut before one.
        fault: what was made to go wrong, if anything.
        seconds: `time.monotonic()` at its arrival.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    origin: str = "hub"
    account: Account | None = None
    status: int = 0
    fault: object = None
    seconds: float = field(default_factory=time.monotonic)

    def json(self) -> Any:
        """Return the body read as JSON."""
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """An answer that says no, with the headers by which the client tells the kinds apart."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = json_answer({"error": message}, status=status, **named)


def json_answer(content: object, *, status: int = 200, **headers: str) -> Answer:
    """Return an answer whose body is JSON."""
    body = json.dumps(content).encode()
    return Answer(status, body, {"Content-Type": "application/json", **headers})


class Requests:
    """Every request so far, in the order of arrival; grows while the Hub runs."""

    def __init__(self) -> None:
        self._all: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def append(self, request: Request) -> None:
        self._all.append(request)

    def clear(self) -> None:
        self._all.clear()

    def matching(self, pattern: str, *, method: str = "") -> list[Request]:
        """Return the requests in whose path the pattern is found."""
        return [
            request
            for request in self
            if re.search(pattern, request.path) and method in ("", request.method)
        ]
