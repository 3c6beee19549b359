"""A process that forks consumers which kill themselves, as `kill -9` would, at a chosen point.

It reads jobs from the standard input, one JSON object a line, and answers each with the signal that
its consumer died of, 0 where it came to the end. Forking spares the seconds that imports take.
"""

import json
import os
import signal
import sys

import torch

from ftmamba.checkpoint import load_to_recommend
from ftmamba.streaming import CheckpointObserver, Rules, consume
from ftmamba.streaming.opening import open_source, open_store


class Fuse:
    """Kills this process when a point is reached for the nth time."""

    def __init__(self, point: str, nth: int) -> None:
        self.point, self.left = point, nth

    def reached(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


class FusedStore:
    def __init__(self, store, fuse) -> None:
        self.store, self.fuse = store, fuse

    def __getattr__(self, name):
        return getattr(self.store, name)

    def put_many(self, puts):
        self.fuse.reached("before the puts")
        done = []
        for put in puts:
            done += self.store.put_many([put])
            self.fuse.reached("between two puts")
        self.fuse.reached("after the puts")
        return done


class FusedSource:
    def __init__(self, source, fuse) -> None:
        self.source, self.fuse = source, fuse

    def read(self, most_events):
        batch = self.source.read(most_events)
        self.fuse.reached("after reading")
        return batch

    def acknowledge(self, batch) -> None:
        self.fuse.reached("before acknowledging")
        self.source.acknowledge(batch)
        self.fuse.reached("after acknowledging")


def run(observer, job) -> None:
    fuse = Fuse(job["point"], job["nth"])
    store, source = open_store(job["store"]), open_source(job["source"])
    consume(FusedSource(source, fuse), FusedStore(store, fuse), observer, Rules(batch_size=8))
    source.close()
    store.close()


def main() -> None:
    torch.set_num_threads(1)
    observer = CheckpointObserver(load_to_recommend(sys.argv[1]))
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(observer, json.loads(line))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{-os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
