"""A Hub on the loopback address, for the real `huggingface_hub` client.

The client reads `HF_ENDPOINT` and `HF_HUB_DISABLE_XET` when it is imported: give a process of its
own `LoopbackHub.environment()`, or use `LoopbackHub.api()` in this one.
"""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from huggingface_hub import HfApi

from .accounts import TOKEN
from .faults import Fault, Faults
from .messages import Answer, Request, Requests
from .repositories import Repository
from .routes import respond
from .state import HubState

PIECE = 1024
POLL_SECONDS = 0.02


class LoopbackHub(HubState):
    """A running Hub: its repositories, what it is told to do wrong, and what it was asked.

    Attributes:
        faults: `hub.faults.add(r"/commit/", status=503, times=2)`.
        requests: everything asked so far.
        unknown: requests that no route answers; a test's sign that the Hub must learn more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults()
        self.requests = Requests()
        self.unknown: list[tuple[str, str]] = []
        self.stopped = threading.Event()

    @property
    def repositories(self) -> Mapping[str, Repository]:
        """The repositories by path: `user/name`, `datasets/user/name`, `spaces/user/name`."""
        return self.store.repositories

    def files(self, path: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository at a revision."""
        return self.repositories[path].files(revision)

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """Return what turns the client of another process to this Hub."""
        named = {"HF_TOKEN": token} if token else {}
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **named,
        }

    def api(self, token: str | bool = TOKEN) -> HfApi:
        """Return a client for this process; uploading large files needs Xet switched off."""
        return HfApi(endpoint=self.endpoint, token=token)


class Server(ThreadingHTTPServer):
    """Threads of a Hub; a client that hangs up is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault strike, and writes the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub
    origin: str

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def answer(self) -> None:
        request = self._read_head()
        fault = self.hub.faults.strike(request)
        request.fault = fault
        self.hub.requests.append(request)
        limit = fault.cut_upload_after if fault else None
        request.body = self._read_body(limit)
        if fault and (fault.hang or limit is not None):
            self.hub.stopped.wait(None if fault.hang else 0)
            self._hang_up()
        elif fault and fault.status:
            request.status = fault.status
            self._send(Answer(fault.status, b'{"error": "injected"}', fault.headers()), None)
        else:
            self._respond(request, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - looked up by name

    def _respond(self, request: Request, fault: Fault | None) -> None:
        found = respond(self.hub, request)
        if found is None:
            self.hub.unknown.append((request.method, request.path))
        answer = found or Answer(404, b'{"error": "no such route"}')
        if fault and fault.lose_answer:
            self._hang_up()
            return
        request.status = answer.status
        self._send(answer, fault)

    def _read_head(self) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        token = headers.get("authorization", "").removeprefix("Bearer ").strip()
        return Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers,
            origin=self.origin,
            account=self.hub.tokens.get(token),
        )

    def _read_body(self, limit: int | None) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            size = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(size if limit is None else min(limit, size))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if limit is not None and len(body) > limit:
                return body[:limit]
        self.rfile.readline()
        return body

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(answer.body, fault)

    def _send_body(self, body: bytes, fault: Fault | None) -> None:
        if fault is None or (fault.cut_after is None and not fault.pause_seconds):
            self.wfile.write(body)
            return
        end = len(body) if fault.cut_after is None else fault.cut_after
        step = PIECE if fault.pause_seconds else max(end, 1)
        for start in range(0, end, step):
            time.sleep(fault.pause_seconds)
            self.wfile.write(body[start : min(start + step, end)])
            self.wfile.flush()
        if end < len(body):
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """Run a Hub and its storage on free ports of 127.0.0.1 until the block ends."""
    hub = LoopbackHub()
    servers = []
    for origin in ("hub", "storage"):
        handler = type("BoundHandler", (Handler,), {"hub": hub, "origin": origin})
        servers.append(Server(("127.0.0.1", 0), handler))
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    threads = [threading.Thread(target=one.serve_forever, args=(POLL_SECONDS,)) for one in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        for one, thread in zip(servers, threads, strict=True):
            one.shutdown()
            thread.join()
            one.server_close()
