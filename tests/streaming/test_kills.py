"""A consumer that is killed at the worst moments loses no event and observes none twice."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftmamba.commands.stream import open_store
from ftmamba.streaming import Rules, consume
from ftmamba.streaming.sources import JsonLinesSource
from ftmamba.streaming.stores import SQLiteStore

from .history_checkpoint import make_events, write_events

ROOT = Path(__file__).parents[2]
POINTS = [
    "after reading",
    "before the puts",
    "between two puts",
    "after the puts",
    "before advancing",
    "before acknowledging",
    "after acknowledging",
]
N_EVENTS = 100


@pytest.fixture(scope="module")
def kill(checkpoint_folder):
    """Return what runs a consumer until a point, and returns the signal that it died of."""
    command = [sys.executable, "-m", "tests.streaming.consume_process", str(checkpoint_folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(**job):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run


@pytest.fixture(scope="module")
def uninterrupted(observer, tmp_path_factory):
    """The states that one run over all events leaves."""
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    write_events(path, make_events(N_EVENTS))
    store, source = SQLiteStore(), JsonLinesSource(path)
    consume(source, store, observer, Rules(batch_size=16))
    source.close()
    return store


def places(kind, request, folder):
    """Return a store and a source with all events, both files or both in Redis."""
    events = make_events(N_EVENTS)
    if kind == "files":
        write_events(folder / "events.jsonl", events)
        return f"file:{folder / 'states'}", str(folder / "events.jsonl")
    redis = pytest.importorskip("redis")
    server = request.getfixturevalue("redis_server")
    with redis.Redis.from_url(server.url) as client:
        for event in events:
            client.xadd("events", {"event": event.to_json()})
    return server.url, server.stream_url("events")


@pytest.mark.parametrize("kind", ["files", "redis"])
def test_states_are_those_of_one_run(kill, observer, uninterrupted, kind, request, tmp_path):
    store_place, source_place = places(kind, request, tmp_path)
    rng = random.Random(0)
    points = POINTS * 2
    rng.shuffle(points)
    names = {"store": store_place, "source": source_place}
    died = [kill(point=point, nth=rng.randint(1, 2), **names) for point in points]
    assert died.count(signal.SIGKILL) >= 8
    assert set(died) <= {signal.SIGKILL, 0}
    assert kill(point="", nth=0, **names) == 0

    store = open_store(store_place)
    assert sorted(store) == sorted(uninterrupted)
    for user in uninterrupted:
        found, expected = store.get([user])[0], uninterrupted.get([user])[0]
        assert found.event_ids == expected.event_ids
        states = [observer.unpack([one.state]) for one in (found, expected)]
        assert states[0].n_events.tolist() == states[1].n_events.tolist()
        assert states[0].last_time.tolist() == states[1].last_time.tolist()
        for name in ("conv", "scan", "last"):
            a, b = (getattr(state, name) for state in states)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    store.close()
