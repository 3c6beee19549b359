"""The Hub that tests push to and load from."""

from collections.abc import Iterator

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from .server import LoopbackHub, serve


@pytest.fixture(scope="session")
def hub(hub_client: None) -> Iterator[LoopbackHub]:
    """A Hub for the whole session: use a repository of your own name, and no faults."""
    with serve() as running:
        yield running
    assert not running.unknown


@pytest.fixture
def own_hub(hub_client: None) -> Iterator[LoopbackHub]:
    """A Hub for one test, to break and to count requests on."""
    with serve() as running:
        yield running
    assert not running.unknown


@pytest.fixture(scope="session")
def hub_environment(hub: LoopbackHub) -> dict[str, str]:
    """What turns the Hub's client of another process to `hub`; read when it is imported."""
    return hub.environment()


@pytest.fixture(scope="session")
def hub_client() -> Iterator[None]:
    """Let this process's client reach the loopback address: no proxy, no Xet, no bars."""
    showed_bars = not are_progress_bars_disabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        disable_progress_bars()
        close_session()
        yield
        close_session()
    if showed_bars:
        enable_progress_bars()
