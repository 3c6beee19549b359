"""Fixtures: a checkpoint with a history, and Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.streaming import CheckpointObserver

from .history_checkpoint import make_checkpoint
from .redis_server import PROGRAM, WHY_NOT, RedisServer


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="session")
def checkpoint_folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "streaming"
    save_checkpoint(folder, checkpoint)
    return folder


@pytest.fixture(scope="session")
def observer(checkpoint: Checkpoint) -> CheckpointObserver:
    return CheckpointObserver(checkpoint)


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_server: RedisServer) -> RedisServer:
    """A server without keys, shared by the tests that leave it running."""
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(_server.url) as client:
        client.flushall()
    return _server


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be stopped and started."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()
