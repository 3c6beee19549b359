"""Load on `ftmamba serve`: an event and the recommendation that it changes, over HTTP.

    python -m benchmarks.serving                 # 100,000 drawn items, 200 requests a second
    python -m benchmarks.serving --store redis://127.0.0.1:6379/0 --workers 2

Pairs of requests, `/events` and then `/recommend` of the same user, begin at fixed times whether
earlier ones are answered or not; `pair_ms` is from the planned begin to the changed recommendation.
The client shares the cores with the server. `closed_loop` sends the next pair after the answer.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.speed.results import environment
from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

TARGETS = {"pair_p99_ms": 5.0, "requests_a_second": 200, "memory_growth_mib": 20}
N_USERS, K = 5000, 10


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--store", default="memory:")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="about the machine, kept with the figures")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        save_checkpoint(folder, drawn_checkpoint(options.items, options.layers))
        figures = measure(folder, options)
    settings = {name: value for name, value in vars(options).items() if value != ""}
    load = os.getloadavg()[0]
    print(
        json.dumps(
            {**settings, **figures, "targets": TARGETS, "load_average": round(load, 1),
             "environment": environment()},
            indent=2,
        )
    )  # fmt: skip


def drawn_checkpoint(n_items: int, n_layers: int) -> Checkpoint:
    """Return an untrained recommender of histories with so many items."""
    items = {
        "item_id": [f"i{row}" for row in range(n_items)],
        "year": np.random.default_rng(0).integers(1950, 2020, n_items).astype(float),
    }
    users = pa.table({"user_id": ["u0", "u1"]})
    extractor = FTMambaFeatureExtractor(
        user_columns=[{"name": "history", "kind": "history"}],
        item_columns=[
            {"name": "item_id", "kind": "categorical"},
            {"name": "year", "kind": "numeric"},
        ],
        user_key="user_id",
        item_key="item_id",
    )
    extractor = fit_extractor(extractor, users, pa.table(items))
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, hidden_size=64, projection_size=64,
        num_hidden_layers=n_layers,
    )  # fmt: skip
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(config).eval()
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=())
    return Checkpoint(model=model, extractor=extractor, catalogue=catalogue)


def measure(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start the server, load it, and stop it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "ftmamba", "serve", folder, "--port", str(port)]
    command += ["--store", options.store, "--workers", str(options.workers)]
    command += ["--threads", str(options.threads)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        return asyncio.run(load(port, process.pid, options))
    finally:
        process.terminate()
        process.wait(40)


async def load(port: int, process: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of an open and of a closed loop."""
    for _ in range(600):
        try:
            await Connection(port).ask("GET", "/readyz")
            break
        except OSError:
            await asyncio.sleep(0.1)
    pool: list[Connection] = [Connection(port) for _ in range(4)]
    rng = np.random.default_rng(1)
    n_pairs = options.requests // 2
    users, items = rng.integers(0, N_USERS, n_pairs), rng.integers(0, options.items, n_pairs)
    pairs = [(f"user{u}", f"i{i}") for u, i in zip(users, items, strict=True)]

    async def pair(number: int) -> tuple[float, float]:
        connection = pool.pop() if pool else Connection(port)
        user, item = pairs[number]
        event = {"user_key": user, "item_key": item, "event_id": f"e{number}"}
        began = time.perf_counter()
        answer = await connection.ask("POST", "/events", event)
        middle = time.perf_counter()
        assert answer["observed"] == 1, answer
        answer = await connection.ask("POST", "/recommend", {"user_key": user, "k": K})
        assert len(answer["items"]) == K
        assert item not in {one["item_key"] for one in answer["items"]}
        pool.append(connection)
        return 1000 * (middle - began), 1000 * (time.perf_counter() - began)

    n_warm = min(200, n_pairs // 4)
    for number in range(n_warm):
        await pair(number)
    before = resident_mib(process)
    begin = time.perf_counter() + 0.05

    async def planned(number: int) -> tuple[float, float] | None:
        at = begin + (number - n_warm) * 2 / options.rate
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        late = 1000 * max(0.0, time.perf_counter() - at)
        try:
            event, both = await pair(number)
        except OSError:
            return None  # Refused, as the server has too much to do.
        return late + event, late + both

    n_open = n_pairs - (n_pairs - n_warm) // 4
    answers = await asyncio.gather(*(planned(number) for number in range(n_warm, n_open)))
    found = [one for one in answers if one is not None]
    seconds = time.perf_counter() - begin
    began = time.perf_counter()
    for number in range(n_open, n_pairs):
        await pair(number)
    alone = time.perf_counter() - began
    after = resident_mib(process)
    return {
        "event_ms": spread([event for event, _ in found]),
        "pair_ms": spread([both for _, both in found]),
        "refused": len(answers) - len(found),
        "requests_a_second": round(2 * len(found) / seconds, 1),
        "closed_loop_requests_a_second": round(2 * (n_pairs - n_open) / alone, 1),
        "memory_mib": {"before": before, "after": after, "growth": round(after - before, 1)},
    }


class Connection:
    """One connection that is kept open; a client of a library would cost more than the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer; an error raises."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        length = next(int(one.split(":")[1]) for one in lines if one.startswith("content-length"))
        answer = await reader.readexactly(length)
        if " 200 " not in f"{status} ":
            raise OSError(f"{path}: {status} {answer.decode()}")
        return json.loads(answer)


def spread(times: list[float]) -> dict[str, float]:
    """Return the median and high percentiles."""
    cuts = statistics.quantiles(times, n=1000)
    return {"p50": round(cuts[499], 2), "p99": round(cuts[989], 2), "p999": round(cuts[998], 2)}


def resident_mib(process: int) -> float:
    """Return the memory of a process and its children."""
    ids = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        ids += map(int, (task / "children").read_text().split())
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in ids)
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    main()
