"""Fixtures: a checkpoint with a history behind an application."""

import shutil
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from ftmamba.checkpoint import load_to_recommend, save_checkpoint
from ftmamba.serving import Service, ServingOptions, make_app
from ftmamba.streaming.stores import SQLiteStore
from hub_cards.facts import typical_record
from tests.streaming.conftest import _server, own_redis_server, redis_server  # noqa: F401
from tests.streaming.history_checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of a checkpoint, to be copied."""
    made = make_checkpoint()
    titles = [f"Film {key}" for key in made.catalogue.keys]
    folder = tmp_path_factory.mktemp("serving") / "run"
    save_checkpoint(folder, replace(made, catalogue=replace(made.catalogue, titles=titles)))
    return folder


@pytest.fixture(scope="session")
def checkpoint(saved):
    return load_to_recommend(saved)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def serve(folder):
    """Serve a folder; the options are those of `ServingOptions` and of `make_app`."""
    clients = []

    def start(where=None, store=None, api_key="", **options):
        options = {"watch_seconds": 0.02, **options}
        service = Service(
            ServingOptions(str(where or folder), **options),
            SQLiteStore() if store is None else store,
        )
        app = make_app(
            service, api_key=api_key, example_of=lambda one: typical_record(one.extractor, {})
        )
        client = TestClient(app)
        client.__enter__()
        clients.append(client)
        client.service = service
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()
