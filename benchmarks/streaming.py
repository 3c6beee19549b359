"""Keeping users fresh: the time of an event, and of computing the same again from the beginning.

    python -m benchmarks.streaming               # 4 layers, width 64, one thread
    python -m benchmarks.streaming --mixer ssd

`event` is `observe` and `embed` of one event of one user; after few and after many events, in
turns. `batch` is the same for many users at once. `again` is the forward pass over a whole history,
and how many times longer it takes than the event alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.speed.results import environment
from modeling_ftmamba import FTMambaConfig, FTMambaTwoTowerModel
from modeling_ftmamba.user_state import UserState

WIDTH = 64
FEW, MANY = 10, 10_000
BATCHES = (256, 1024)
HISTORIES = (200, 1_000, 10_000)
TARGETS = {"p99_ms": 1.0, "ratio": 1.1, "events_a_second": 20_000, "kilobytes": 40}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixer", default="mamba", choices=("mamba", "ssd"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = make_model(options.mixer, options.layers)
    with torch.inference_mode():
        small = model.start(n_users=1).to(torch.float16)
        events = time_events(model, options.calls)
        medians = [events[past]["median_ms"] for past in (FEW, MANY)]
        figures = {
            "event": {f"after {past:,} events": found for past, found in events.items()},
            "ratio_of_medians": round(medians[1] / medians[0], 3),
            "batch": {f"{n} users": time_batch(model, n) for n in BATCHES},
            "again": {f"{n:,} events": time_again(model, n, medians[0]) for n in HISTORIES},
            "float16_bytes": sum(one.nbytes for one in small.tensors().values()),
        }
    settings = {"mixer": options.mixer, "layers": options.layers, "width": WIDTH}
    print(json.dumps({**settings, **figures, "targets": TARGETS, "environment": environment()}))


def make_model(mixer: str, n_layers: int) -> FTMambaTwoTowerModel:
    """Return an untrained recommender of a history alone."""
    torch.manual_seed(0)
    config = FTMambaConfig.from_columns(
        [{"name": "history", "kind": "history"}],
        [{"name": "item", "kind": "categorical", "vocabulary_size": 1000}],
        item_tower={"num_hidden_layers": 0, "pooling": "mean", "final_norm": False},
        mixer=mixer, hidden_size=WIDTH, projection_size=WIDTH, num_hidden_layers=n_layers,
        pooling="last", with_head=False,
    )  # fmt: skip
    return FTMambaTwoTowerModel(config).eval()


def time_events(model: FTMambaTwoTowerModel, n_calls: int) -> dict[int, dict[str, float]]:
    """Return milliseconds of one event of one user, after few and after many."""
    states = {past: observed(model, 1, past) for past in (FEW, MANY)}
    event = torch.randn(1, 1, WIDTH)
    times: dict[int, list[float]] = {past: [] for past in states}
    for call in range(n_calls + 50):
        for past, state in states.items():
            started = time.perf_counter()
            states[past] = model.observe(state, event)
            model.embed(states[past])
            if call >= 50:
                times[past].append(1e3 * (time.perf_counter() - started))
    return {past: spread(found) for past, found in times.items()}


def time_batch(model: FTMambaTwoTowerModel, n_users: int) -> dict[str, float]:
    """Return events a second where every user of a batch has one."""
    state, events = observed(model, n_users, FEW), torch.randn(n_users, 1, WIDTH)
    seconds = [timed(lambda: model.embed(model.observe(state, events))) for _ in range(15)]
    rates = [n_users / one for one in seconds]
    return {"median_a_second": round(statistics.median(rates)), "least": round(min(rates))}


def time_again(model: FTMambaTwoTowerModel, n_events: int, event_ms: float) -> dict[str, float]:
    """Return milliseconds of the forward pass over a history, and how many events that is."""
    history = torch.randn(1, n_events, WIDTH)
    seconds = [timed(lambda: model.get_user_embeddings(user_history=history)) for _ in range(15)]
    again_ms = 1e3 * statistics.median(seconds)
    return {"median_ms": round(again_ms, 3), "times_an_event": round(again_ms / event_ms, 1)}


def observed(model: FTMambaTwoTowerModel, n_users: int, n_events: int) -> UserState:
    """Return the states of users after so many events."""
    return model.observe(model.start(n_users=n_users), torch.randn(n_users, n_events, WIDTH))


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(times: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    p99 = statistics.quantiles(times, n=100)[98]
    return {"median_ms": round(statistics.median(times), 3), "p99_ms": round(p99, 3)}


if __name__ == "__main__":
    main()
