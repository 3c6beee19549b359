"""A recommender whose texts are hostile, its page in a process without this project, a browser.

The browser is Debian's: `apt-get install chromium chromium-driver`. Without it these tests skip.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.table_embedding import embed_catalogue
from hub_cards.space import SpaceFacts, write_space
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

SERVE = Path(__file__).parent / "serve.py"
PAGE_IS_UP_SECONDS = 120
PROJECT = ("ftmamba", "modeling_ftmamba", "hub_cards", "train_accelerate")
N_ITEMS = 40

HOSTILE_TITLES = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script>",
    "${window.hacked = 4} {{window.hacked}}",
    "' onclick='window.hacked = 5",
]
HOSTILE_JOB = "<b>doctor</b></script><script>window.hacked = 6</script>"
USER_COLUMNS = [
    {"name": "age", "kind": "numeric"},
    {"name": "job<script>window.hacked = 7</script>", "kind": "categorical"},
    {"name": "likes", "kind": "categories"},
    {"name": "joined", "kind": "timestamp"},
    {"name": "taste", "kind": "vector"},
]
JOB = USER_COLUMNS[1]["name"]
EXAMPLE = {"age": 31, JOB: "artist", "likes": ["tea"]}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """An untrained recommender of every kind of column, in its folder."""
    users = pa.table(
        {
            "age": [20.0 + row for row in range(12)],
            JOB: ["artist", "nurse", HOSTILE_JOB] * 4,
            "likes": [["tea"], ["tea", "war"], []] * 4,
            "joined": [f"2024-01-{1 + row:02}" for row in range(12)],
            "taste": [[row / 12, 1.0] for row in range(12)],
        }
    )
    items = {
        "item_id": [f"i{row:02}" for row in range(N_ITEMS)],
        "year": [1980.0 + row for row in range(N_ITEMS)],
        "genres": [["drama", "war"][: row % 3] for row in range(N_ITEMS)],
    }
    titles = [f"Film number {row}" for row in range(N_ITEMS)]
    titles[: len(HOSTILE_TITLES)] = HOSTILE_TITLES
    extractor = FTMambaFeatureExtractor(
        user_columns=USER_COLUMNS,
        item_columns=[
            {"name": "item_id", "kind": "categorical"},
            {"name": "year", "kind": "numeric"},
            {"name": "genres", "kind": "categories"},
        ],
        user_key="user_id",
        item_key="item_id",
    )
    extractor = fit_extractor(extractor, users, pa.table(items))
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "state_size": 4, "head_hidden_size": 16, "projection_size": 8}
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, temperature=0.05, **sizes
    )
    model = FTMambaTwoTowerModel(config).eval()
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=titles)
    folder = tmp_path_factory.mktemp("models") / "films"
    save_checkpoint(folder, Checkpoint(model, extractor, catalogue, card="# Films\n"))
    return folder


@dataclass(frozen=True)
class Served:
    """A page that is being served."""

    url: str
    log: Path


@contextmanager
def served(folder, log, *, without=PROJECT, **variables):
    """Serve a Space's folder on a free port of 127.0.0.1 until the block ends.

    Args:
        folder: as `write_space` leaves it.
        log: file for what the process prints.
        without: packages that the process does not find.
        variables: of the process's environment; by default it asks no Hub.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(log.parent / "modules"),
        **variables,
    }
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(SERVE), str(folder), *without],
            cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(url, process, log)
            yield Served(url, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url, process, log):
    end = time.monotonic() + PAGE_IS_UP_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the page is not up: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def page(model_folder, tmp_path_factory):
    """The page of the hostile recommender, with explanations: `ftmamba` is installed."""
    pytest.importorskip("gradio", reason="needs the extra 'space'")
    folder = tmp_path_factory.mktemp("spaces") / "demo"
    write_space(folder, SpaceFacts(str(model_folder), example=EXAMPLE))
    without = PROJECT[2:]
    with served(folder, folder.parent / "page.log", without=without) as running:
        yield running


@pytest.fixture(scope="session")
def make_browser():
    """Return a function that opens Chromium at a width."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs Debian's chromium and chromium-driver")
    opened: list[Any] = []

    def open_browser(width, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = paths[0]
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            "--hide-scrollbars", f"--window-size={max(width, 500)},{height}",
        ):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
        opened.append(browser)
        resize(browser, width, height)
        return browser

    yield open_browser
    for browser in opened:
        browser.quit()


def resize(browser, width, height):
    """Give the page a size that the window may not have, such as a phone's."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
