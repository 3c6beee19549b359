"""Load on an inference endpoint: a checkpoint behind a small HTTP server on this machine.

    python -m benchmarks.endpoint runs/quickstart --record '{"age": 31}' --clients 1 4

Every client sends its next request when it has the answer to the last. Latency is what the client
sees, the server's queue included; server and clients share this machine's cores.
"""

import argparse
import http.client
import importlib.util
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.speed.results import ROOT, environment


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--record", default="{}", help="raw record, as JSON")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    started = time.perf_counter()
    handler = load_handler(Path(options.checkpoint))
    figures: dict[str, Any] = {"start_seconds": round(time.perf_counter() - started, 2)}
    body = json.dumps({"inputs": json.loads(options.record), "parameters": {"top_k": 10}})
    with serve(handler) as port:
        send(port, body, 20)
        figures["load"] = [
            {"clients": n_clients, **load(port, body, options.requests, n_clients)}
            for n_clients in options.clients
        ]
    print(json.dumps({**figures, "environment": environment()}, indent=2))


def load_handler(folder: Path) -> Any:
    """Import the checkpoint's own handler as an endpoint does, or the project's if it has none."""
    own = folder / "handler.py"
    source = own if own.is_file() else ROOT / "hub_cards" / "handler.py"
    spec = importlib.util.spec_from_file_location("handler", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


@contextmanager
def serve(handler: Any) -> Iterator[int]:
    """Answer POST requests with the handler on a free port of 127.0.0.1."""

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(handler(request)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def load(port: int, body: str, n_requests: int, n_clients: int) -> dict[str, float]:
    """Send requests from several clients at once; return latencies and throughput."""
    started = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as clients:
        share = n_requests // n_clients
        parts = list(clients.map(lambda _: send(port, body, share), range(n_clients)))
    seconds = time.perf_counter() - started
    times = [one for part in parts for one in part]
    percentiles = statistics.quantiles(times, n=100)
    return {
        "requests": len(times),
        "p50_ms": round(1e3 * percentiles[49], 2),
        "p99_ms": round(1e3 * percentiles[98], 2),
        "requests_per_second": round(len(times) / seconds, 1),
    }


def send(port: int, body: str, n_requests: int) -> list[float]:
    """Send requests one after the other on one connection; return the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times = []
    for _ in range(n_requests):
        started = time.perf_counter()
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        times.append(time.perf_counter() - started)
        if "error" in answer:
            raise RuntimeError(f"the endpoint answered {answer}")
    connection.close()
    return times


if __name__ == "__main__":
    main()
