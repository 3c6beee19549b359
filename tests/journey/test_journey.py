"""From tables to a page that recommends, over a Hub that fails on the way."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from ftmamba.checkpoint import load_checkpoint
from tests.hub.processes import ROOT, run_process, run_python
from tests.hub.server import TOKEN
from tests.space.conftest import served
from tests.space.test_page import elements, listed, texts, until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LAUNCH_FILE = ROOT / "configuration" / "accelerate" / "two-cpu-processes.yaml"
MODEL, SPACE = "tester/films", "tester/films-demo"


def test_two_ranks_train_strangers_load_and_a_page_recommends(
    own_hub, argv, not_bare, make_browser, tmp_path
):
    environment = {**own_hub.environment(), "HF_HOME": str(tmp_path)}
    break_now_and_then(own_hub)
    told = train_in_two_processes(argv, environment)
    assert_each_state_was_pushed_once(own_hub, told)
    assert_what_arrived_is_what_was_saved(own_hub, tmp_path)

    by_recommender, by_pipeline, embed = code_of_the_card(own_hub)
    own_hub.faults.add(r"/resolve/.*/model.safetensors", cut_after=1000)
    found = run_as_pasted(by_recommender, [], environment)["printed"].splitlines()
    assert len(found) == 10
    own_hub.faults.add(r"/resolve/.*/catalogue.safetensors", status=503)
    (tmp_path / "stranger").mkdir()
    bare = {**environment, "HF_HOME": str(tmp_path / "stranger")}
    printed = run_as_pasted(by_pipeline, not_bare, bare)["printed"].splitlines()
    items = [ast.literal_eval(line) for line in printed]
    assert [one["item_key"] for one in items] == [line.split(" ")[0] for line in found]
    sizes = run_as_pasted(embed, not_bare, bare, sizes=["embedding"])["sizes"]
    assert sizes == {"embedding": [1, 8]}

    page = push_space(own_hub, environment, tmp_path)
    assert_page_recommends(page, make_browser, {**bare, "HF_HUB_OFFLINE": "0"}, tmp_path)
    assert not own_hub.unknown


def break_now_and_then(hub):
    hub.faults.add(r"/repos/create", status=503)
    hub.faults.add(r"/_upload/", cut_upload_after=100)
    hub.faults.add(r"/preupload/", status=429, retry_after=0)
    hub.faults.add(r"/commit/", status=500)
    hub.faults.add(r"/commit/", lose_answer=True)


def train_in_two_processes(argv, environment):
    """Train, each rank with a token of its own; return what was told."""
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILE),
        "--main_process_port", "0", str(HERE / "two_ranks.py"), *argv,
        "--checkpointing_steps", "epoch", "--hub_strategy", "every_save", "--hub_patience", "100",
    ]  # fmt: skip
    done = run_process(launch, timeout=240, **environment, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def assert_each_state_was_pushed_once(hub, told):
    assert "NOT ON THE HUB" not in told
    assert "next try in" in told
    assert TOKEN not in told
    sent = [one.headers.get("authorization") for one in hub.requests if one.origin == "hub"]
    assert set(sent) == {f"Bearer {TOKEN}"}
    titles = [one.title for one in hub.repositories[MODEL].history("main")]
    assert len(titles) == len(set(titles)) >= 3
    assert titles[0].startswith("Pin")
    assert titles[1].startswith("Trained for")


def assert_what_arrived_is_what_was_saved(hub, tmp_path):
    output = tmp_path / "runs" / "films"
    assert hub.files(MODEL)["model.safetensors"] == (output / "model.safetensors").read_bytes()
    arrived = hub.download(MODEL, tmp_path / "arrived")
    assert list(load_checkpoint(arrived).catalogue.keys) == list(
        load_checkpoint(output).catalogue.keys
    )


def code_of_the_card(hub):
    card = hub.files(MODEL)["README.md"].decode()
    assert hub.repositories[MODEL].history("main")[1].oid in card
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run_as_pasted(code, blocked, environment, sizes=()):
    order = {"code": code, "blocked": blocked, "sizes": sizes}
    return run_python(HERE / "run_code.py", json.dumps(order), **environment)


def push_space(hub, environment, tmp_path):
    """Push a Space with the command, as one would; return its files in a folder."""
    done = run_process(
        [sys.executable, "-m", "ftmamba", "space", MODEL, "--space", SPACE],
        **environment, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return hub.download(f"spaces/{SPACE}", tmp_path / "space")


def assert_page_recommends(folder, make_browser, environment, tmp_path):
    with served(folder, tmp_path / "page.log", **environment) as page:
        browser = make_browser(1280)
        browser.get(page.url)
        until(lambda: len(listed(browser)) == 10, "a list of ten")
        title = listed(browser)[2]
        elements(browser, "#listed .item")[2].click()
        until(lambda: title in texts(browser, "#why h3")[0], "the third item is selected")
        assert "pip install ftmamba" in texts(browser, "#why .message")[0]
