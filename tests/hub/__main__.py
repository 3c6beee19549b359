"""Run a Hub to try things by hand: `python -m tests.hub`, then paste what it prints."""

import shlex
import sys
import threading

from .server import serve

if __name__ == "__main__":
    with serve() as running:
        for name, value in running.environment().items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        sys.stdout.flush()
        threading.Event().wait()
