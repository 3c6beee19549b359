"""`python -m ftmamba serve`: answer requests over HTTP."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftmamba.commands.stream import open_store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ftmamba.serving import Service

API_KEY = "FTMAMBA_API_KEY"
"""The variable of the environment that holds the API key: other users could read a flag."""

_OPTIONS = "FTMAMBA_SERVE"
_SECONDS_TO_STOP = 30
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8000, help="default: 8000")
    add("--workers", type=int, default=1, help="processes; several need a store that they share")
    add(
        "--store", default="memory:", metavar="STORE",
        help="states: memory:, file:PATH, or redis://HOST:PORT/DATABASE (default: memory:)",
    )  # fmt: skip
    add(
        "--ttl", type=float, default=0, metavar="SECONDS",
        help="delete a user's state so long after the last event",
    )  # fmt: skip
    add(
        "--late", choices=("refuse", "accept", "recompute"), default="refuse",
        help="events older than their user's newest: refuse them, read them as if they were as "
        "new, or keep a log of each user's events and compute the user again (default: refuse)",
    )  # fmt: skip
    add("--float16", action="store_true", help="keep states in half the space, slightly rounded")
    add("--most-k", type=int, default=100, help="items a request may ask for (default: 100)")
    add(
        "--most-body-bytes", type=int, default=2**20, metavar="BYTES",
        help="of a request (default: 1 MiB)",
    )  # fmt: skip
    add(
        "--most-requests", type=int, default=64, metavar="N",
        help="computed or waiting at once in a worker; further ones get 429 (default: 64)",
    )  # fmt: skip
    add("--threads", type=int, default=1, help="requests computed at once in a worker (default: 1)")
    add("--revision", help="branch, tag or commit on the Hub")


def run(arguments: Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are answered first."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ImportError(
            f"serving needs {', '.join(missing)}, not installed; run pip install 'ftmamba[serve]'"
        )
    import uvicorn

    from ftmamba.serving import ServingOptions

    if arguments.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {arguments.workers}")
    if arguments.workers > 1 and arguments.store == "memory:":
        raise ValueError(
            f"--workers {arguments.workers} would each keep other states in memory; give --store "
            "redis://HOST:PORT/DATABASE or file:PATH"
        )
    names = ServingOptions.__dataclass_fields__.keys() & vars(arguments).keys()
    options = ServingOptions(**{name: getattr(arguments, name) for name in names})
    store = {"name": arguments.store, "ttl_seconds": arguments.ttl}
    os.environ[_OPTIONS] = json.dumps({"options": asdict(options), "store": store})
    if arguments.workers > 1:
        _service().close()  # What is wrong is said once here, not by every worker again and again.
    with TemporaryDirectory(prefix="ftmamba-metrics-") as folder:
        if arguments.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        uvicorn.run(
            "ftmamba.commands.serve:app",
            factory=True,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            timeout_graceful_shutdown=_SECONDS_TO_STOP,
            # Longer than a proxy keeps a connection, lest it sends into one that is being closed.
            timeout_keep_alive=75,
            access_log=False,
            server_header=False,
        )


def app() -> "FastAPI":
    """Return the application of one worker, as the environment says."""
    import torch

    from ftmamba.serving import make_app
    from hub_cards.facts import example_record

    # Requests are computed side by side, so each has one core.
    torch.set_num_threads(1)
    # The thread that answers waits for the one that computes so long, instead of 5 ms.
    sys.setswitchinterval(0.0005)
    key = os.environ.get(API_KEY, "")
    return make_app(_service(), api_key=key, example_of=example_record)


def _service() -> "Service":
    from ftmamba.serving import Service, ServingOptions

    given: dict[str, Any] = json.loads(os.environ[_OPTIONS])
    # A client waits for the answer: it is refused at once while a server is away.
    return Service(ServingOptions(**given["options"]), open_store(**given["store"], retries=0))
