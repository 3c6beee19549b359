"""A Redis server of a test's own: on a free port of this machine, its files in a folder."""

import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAM = shutil.which("redis-server")
WHY_NOT = "needs the program redis-server (apt-get install redis-server)"


class RedisServer:
    """A server that keeps every write, so that it has it after a restart, unless told otherwise."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def stream_url(self, stream: str) -> str:
        return f"redis://127.0.0.1:{self.port}/{stream}"

    def start(self) -> None:
        assert PROGRAM is not None
        options = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "",
            "appendonly": "yes", "appendfsync": "always", "daemonize": "no", **self.options,
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([PROGRAM, *flags], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it, as a loss of power would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
