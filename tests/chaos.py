"""Disturb the consumers of a stream and its servers, and count the events lost and doubled.

`python -m tests.chaos --events 10000` runs each scenario with `ftmamba stream` and compares every
user's state with that of an undisturbed run. It exits with 1 if an event was lost or counted twice
without an exit code and a message that say so.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import redis
import torch

import ftmamba.checkpoint
from ftmamba.__main__ import main as ftmamba_main
from ftmamba.commands.stream import open_store
from ftmamba.streaming import CheckpointObserver, Rules, StateStore, UserEvent, consume
from ftmamba.streaming.sources import JsonLinesSource
from ftmamba.streaming.stores import SQLiteStore
from tests.kills import run_with_log
from tests.streaming.history_checkpoint import make_checkpoint, make_events, write_events
from tests.streaming.redis_server import RedisServer

EVENTS_A_USER = 60
CLAIM_SECONDS = 0.5
MOST_SECONDS = 300.0


@dataclass
class Scene:
    """What a scenario disturbs: two servers, and the consumers that it starts."""

    folder: Path
    events: list[UserEvent]
    draw: random.Random
    seconds: float
    n_kills: int
    stream: RedisServer
    states: RedisServer
    source: str = ""
    store: str = ""
    kills: int = 0
    pauses: int = 0
    runs: list[BaseProcess] = field(default_factory=list)
    report: str = ""

    def start(self, consumer: str = "one", *flags: str) -> BaseProcess:
        """Start a consumer that reads to the end."""
        argv = ["stream", "", "--source", self.source, "--store", self.store, "--batch", "64"]
        argv += ["--consumer", consumer, "--claim_seconds", str(CLAIM_SECONDS), *flags]
        arguments = ftmamba_main, argv, self.log(len(self.runs))
        run = get_context("fork").Process(target=run_with_log, args=arguments)
        run.start()
        self.runs.append(run)
        return run

    def log(self, number: int) -> Path:
        return self.folder / f"log-{number}"

    def ended(self, run: BaseProcess) -> int:
        """Wait for the end of a consumer; return its exit code."""
        run.join(MOST_SECONDS)
        if run.exitcode is None:
            run.kill()
            raise TimeoutError(f"a consumer ran {MOST_SECONDS:.0f} s: {self.words(run)}")
        return run.exitcode

    def words(self, run: BaseProcess) -> str:
        return self.log(self.runs.index(run)).read_text()[-2000:]

    def finish(self) -> None:
        """Start one more consumer, which must come to the end."""
        run = self.start("last")
        if self.ended(run):
            raise RuntimeError(f"exit code {run.exitcode}: {self.words(run)}")

    def pause(self) -> None:
        """Wait for a random time in which a few batches are consumed."""
        time.sleep(self.draw.uniform(0.05, 1.4 * self.seconds / self.n_kills))

    def kill_often(self, name: Callable[[int], str], n_consumers: int = 1) -> None:
        """Kill consumers that go on where others were killed, until all came to the end."""
        running: list[BaseProcess] = []
        has_ended = False
        for number in count():
            while len(running) < n_consumers and self.kills < self.n_kills and not has_ended:
                running.append(self.start(name(number)))
            if not running:
                return
            self.pause()
            run = self.draw.choice(running)
            if run.exitcode is None and self.kills < self.n_kills:
                self.kills += 1
                os.kill(run.pid or 0, signal.SIGKILL)
            code = self.ended(run)
            running.remove(run)
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError(f"exit code {code}: {self.words(run)}")
            has_ended |= code == 0


def kill(scene: Scene) -> None:
    """A consumer is killed again and again."""
    scene.kill_often(lambda _: "one")


def kill_files(scene: Scene) -> None:
    """The same from a file to a file."""
    write_events(scene.folder / "events.jsonl", scene.events)
    scene.source = str(scene.folder / "events.jsonl")
    scene.store = f"file:{scene.folder / 'states.sqlite'}"
    scene.kill_often(lambda _: "one")


def rename(scene: Scene) -> None:
    """Each consumer has another name than the one that was killed."""
    scene.kill_often(lambda number: f"consumer-{number}")


def two(scene: Scene) -> None:
    """Two consumers of equal names, one of which is killed now and then."""
    scene.kill_often(lambda _: "one", n_consumers=2)


def pause(scene: Scene) -> None:
    """Consumers stop for longer than their claim, while others take over, and go on."""
    runs = [scene.start("one"), scene.start("two")]
    while all(run.exitcode is None for run in runs):
        run = scene.draw.choice(runs)
        scene.pause()
        with suppress(ProcessLookupError):
            os.kill(run.pid or 0, signal.SIGSTOP)
            time.sleep(2 * CLAIM_SECONDS)
            os.kill(run.pid or 0, signal.SIGCONT)
            scene.pauses += 1
    for run in runs:
        if scene.ended(run):
            raise RuntimeError(scene.words(run))


def evict(scene: Scene) -> None:
    """The server of the states evicts some, while nobody looks and while a consumer runs."""
    _some(scene)
    with redis.Redis.from_url(scene.states.url) as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", int(0.97 * used))
        _refused(scene, "may evict users' states")
        assert client.info("stats")["evicted_keys"] > 0
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        run = scene.start()
        scene.pause()
        for key in client.scan_iter("ftmamba:state:*", count=10):
            client.delete(key)
            break
        if scene.ended(run) and "have vanished" not in scene.words(run):
            raise RuntimeError(scene.words(run))


def lose(scene: Scene) -> None:
    """The server of the states is killed, and comes back with an old snapshot or with nothing."""
    scene.states.options.update(appendonly="no")
    scene.states.stop()
    scene.states.start()
    for number in range(3):
        run = scene.start()
        time.sleep(scene.seconds / 8)
        if number:
            with redis.Redis.from_url(scene.states.url) as client:
                client.save()
        time.sleep(scene.seconds / 8)
        scene.states.stop()
        scene.states.start()
        time.sleep(scene.seconds / 8)
        os.kill(run.pid or 0, signal.SIGKILL)
        scene.kills += 1
        scene.ended(run)


def flush(scene: Scene) -> None:
    """The states are flushed and the stream's group is destroyed under a running consumer."""
    run = scene.start()
    for _ in range(3):
        time.sleep(scene.seconds / 8)
        with redis.Redis.from_url(scene.states.url) as client:
            client.flushall()
        with redis.Redis.from_url(scene.stream.url) as client:
            client.xgroup_destroy("events", "ftmamba")
    if scene.ended(run):
        raise RuntimeError(scene.words(run))


def fail_over(scene: Scene) -> None:
    """The server of the states refuses writes for a while, as a replica before its promotion."""
    run = scene.start()
    with redis.Redis.from_url(scene.states.url) as client:
        for _ in range(3):
            scene.pause()
            client.replicaof("127.0.0.1", scene.stream.port + 1)
            time.sleep(0.3)
            client.replicaof("NO", "ONE")
    if scene.ended(run):
        raise RuntimeError(scene.words(run))


def trim(scene: Scene) -> None:
    """Entries are removed from the stream before they are read, which cannot be made good."""
    _some(scene)
    with redis.Redis.from_url(scene.stream.url) as client:
        client.xtrim("events", maxlen=1, approximate=False)
    _refused(scene, "were removed before being read")


def lose_all(scene: Scene) -> None:
    """One server without persistence holds the stream and the states, and is lost."""
    scene.states.options.update(appendonly="no")
    scene.states.stop()
    scene.states.start()
    add(scene.states, scene.events)
    scene.source = scene.states.stream_url("events")
    run = scene.start("one", "--follow")
    _wait_for_some(scene.states, run)
    scene.states.stop()
    scene.states.start()
    code = scene.ended(run)
    scene.report = "cannot be computed again" if code else ""
    if not code or scene.report not in scene.words(run):
        raise RuntimeError(f"exit code {code}: {scene.words(run)}")


SCENARIOS = (
    kill, kill_files, rename, two, pause, evict, lose, flush, fail_over, trim, lose_all,
)  # fmt: skip


def _some(scene: Scene) -> None:
    """Kill a consumer that has consumed some events."""
    run = scene.start()
    _wait_for_some(scene.stream, run)
    os.kill(run.pid or 0, signal.SIGKILL)
    scene.kills += 1
    scene.ended(run)


def _wait_for_some(server: RedisServer, run: BaseProcess) -> None:
    with redis.Redis.from_url(server.url) as client:
        while run.exitcode is None and not client.xinfo_groups("events"):
            time.sleep(0.01)


def _refused(scene: Scene, words: str) -> None:
    run = scene.start()
    if not scene.ended(run) or words not in scene.words(run):
        raise RuntimeError(f"exit code {run.exitcode}: {scene.words(run)}")
    scene.report = words


def add(server: RedisServer, events: list[UserEvent]) -> None:
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipe:
        for event in events:
            pipe.xadd("events", {"event": event.to_json()})
        pipe.execute()


def differences(
    store: StateStore, expected: StateStore, observer: CheckpointObserver, events: list[UserEvent]
) -> tuple[int, int, int]:
    """Return the events lost, those doubled, and the users whose state is another."""
    ids: dict[str, set[str]] = {}
    for event in events:
        ids.setdefault(event.user_key, set()).add(event.event_id)
    lost = doubled = n_other = 0
    for user, own in ids.items():
        found, right = store.get([user])[0], expected.get([user])[0]
        assert right is not None
        if found is None:
            lost += len(own)
            continue
        state, wanted = observer.unpack([found.state]), observer.unpack([right.state])
        lost += len(own - set(found.event_ids))
        doubled += int(state.n_events - wanted.n_events) + len(own - set(found.event_ids))
        n_other += not all(
            torch.allclose(getattr(state, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
            for name in ("conv", "scan", "last")
        )
    return lost, doubled, n_other


@contextmanager
def servers(folder: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Start a server for the stream and one for the states."""
    both = []
    for name in ("stream", "states"):
        (folder / name).mkdir(parents=True)
        both.append(RedisServer(folder / name, appendfsync="everysec"))
        both[-1].start()
    try:
        yield both[0], both[1]
    finally:
        for server in both:
            server.stop()


def play(names: list[str], n_events: int, n_kills: int, seed: int, folder: Path) -> int:
    """Run scenarios, print a line of each; return how many failed."""
    torch.set_num_threads(1)
    checkpoint = make_checkpoint()
    ftmamba.checkpoint.load_to_recommend = lambda *_args, **_options: checkpoint
    observer = CheckpointObserver(checkpoint)
    events = make_events(n_events, n_users=max(4, n_events // EVENTS_A_USER))
    write_events(folder / "all.jsonl", events)
    expected, began = SQLiteStore(), time.perf_counter()
    consume(JsonLinesSource(folder / "all.jsonl"), expected, observer, Rules(batch_size=64))
    seconds = time.perf_counter() - began
    total_kills = n_failed = 0
    for scenario in [one for one in SCENARIOS if one.__name__ in names]:
        own, problem, counts = folder / scenario.__name__, "", (0, 0, 0)
        draw = random.Random(f"{seed} {scenario.__name__}")
        began = time.perf_counter()
        with servers(own) as (stream, states):
            add(stream, events)
            scene = Scene(
                own, events, draw, seconds, n_kills, stream, states,
                stream.stream_url("events"), states.url,
            )  # fmt: skip
            try:
                scenario(scene)
                if scenario not in (trim, lose_all):
                    scene.finish()
                store = open_store(scene.store)
                counts = differences(store, expected, observer, events)
                store.close()
            except (RuntimeError, TimeoutError) as error:
                problem = str(error)
            finally:
                for run in scene.runs:
                    if run.exitcode is None:
                        os.kill(run.pid or 0, signal.SIGCONT)
                        run.kill()
                        run.join()
        total_kills += scene.kills
        is_reported = scenario in (trim, lose_all) and bool(scene.report)
        failed = bool(problem) or (any(counts) and not is_reported)
        n_failed += failed
        outcome = (
            "FAILED " + problem if failed else f"told: {scene.report}" if scene.report else "ok"
        )
        print(
            f"{scenario.__name__}: {len(scene.runs)} consumers, {scene.kills} kills, "
            f"{scene.pauses} pauses, of "
            f"{n_events} events {counts[0]} lost, {counts[1]} doubled, {counts[2]} users differ, "
            f"{time.perf_counter() - began:.0f} s; {outcome}",
            flush=True,
        )
    print(f"{total_kills} kills: {n_failed} scenarios failed")
    return n_failed


def main() -> int:
    """Play the chosen scenarios; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [one.__name__ for one in SCENARIOS]
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=30, help="in each scenario that kills often")
    parser.add_argument("--scenario", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ftmamba-chaos-") as folder:
        return int(
            play(
                arguments.scenario, arguments.events, arguments.kills, arguments.seed, Path(folder)
            )
            > 0
        )


if __name__ == "__main__":
    sys.exit(main())
