"""A model on the Hub, and its Space pushed by the command; `tests/journey` opens one."""

import re
import sys

import pytest

from hub_cards.push import push_checkpoint
from tests.hub.processes import ROOT, run_process
from tests.space.conftest import EXAMPLE

pytestmark = pytest.mark.slow

MODEL, SPACE = "tester/space-films", "tester/space-demo"


@pytest.fixture(scope="module")
def commit(hub, model_folder):
    return push_checkpoint(model_folder, MODEL, api=hub.api()).commit


def run_command(tmp_path, environment, *arguments):
    return run_process(
        [sys.executable, "-m", "ftmamba", *arguments],
        **environment, HF_HOME=str(tmp_path), PYTHONPATH=str(ROOT),
    )  # fmt: skip


def test_a_pushed_space_holds_its_page_and_pins_the_models_commit(
    hub, hub_environment, commit, tmp_path
):
    done = run_command(tmp_path, hub_environment, "space", MODEL, "--space", SPACE, "--private")
    assert done.returncode == 0, done.stderr
    assert SPACE in done.stdout
    repository = hub.repositories[f"spaces/{SPACE}"]
    files = hub.files(f"spaces/{SPACE}")
    assert {"app.py", "README.md", "requirements.txt", "page.py", "page.css"} <= set(files)
    (pinned,) = re.findall(r'revision="([0-9a-f]{40})"', files["app.py"].decode())
    assert pinned == hub.api().model_info(MODEL).sha
    assert repository.private


def test_a_model_that_is_not_there_is_told(hub, hub_environment, tmp_path):
    done = run_command(tmp_path, hub_environment, "space", "tester/nothing", "--space", "tester/x")
    assert done.returncode == 2
    assert "no such repository on the Hub" in done.stderr
    assert "spaces/tester/x" not in hub.repositories


def test_a_space_of_somebody_else_is_not_written(hub, hub_environment, commit, tmp_path):
    done = run_command(tmp_path, hub_environment, "space", MODEL, "--space", "somebody/demo")
    assert done.returncode == 2
    assert hub_environment["HF_TOKEN"] not in done.stderr + done.stdout
    assert "somebody/demo" in done.stderr


def test_the_example_is_made_up_of_frequent_values(hub, commit, model_folder):
    from hub_cards.space import space_of

    facts = space_of(str(model_folder))
    assert set(facts.example) <= set(EXAMPLE)
    assert facts.revision == ""
