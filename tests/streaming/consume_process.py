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
from ftmamba.commands.stream import open_source, open_store
from ftmamba.streaming import CheckpointObserver, Rules, consume


class Fused:
    """A source and a store that kill this process when a point is reached for the nth time."""

    def __init__(self, source, store, point: str, nth: int) -> None:
        self.source, self.store, self.point, self.left = source, store, point, nth
        self.get, self.sync, self.log = store.get, store.sync, store.log
        self.claim, self.release, self.n_vanished = store.claim, store.release, store.n_vanished
        self.forget, self.seek, self.lost_after = store.forget, source.seek, source.lost_after

    def reached(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    @property
    def name(self):
        return self.source.name

    @property
    def bookmark(self):
        return self.source.bookmark

    def advance(self, position) -> None:
        self.reached("before advancing")
        self.store.advance(position)

    def put_many(self, puts):
        self.reached("before the puts")
        done = []
        for put in puts:
            done += self.store.put_many([put])
            self.reached("between two puts")
        self.reached("after the puts")
        return done

    def read(self, most_events):
        batch = self.source.read(most_events)
        self.reached("after reading")
        return batch

    def acknowledge(self, batch) -> None:
        self.reached("before acknowledging")
        self.source.acknowledge(batch)
        self.reached("after acknowledging")


def run(observer, job) -> None:
    store, source = open_store(job["store"]), open_source(job["source"])
    fused = Fused(source, store, job["point"], job["nth"])
    consume(fused, fused, observer, Rules(batch_size=16))
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
