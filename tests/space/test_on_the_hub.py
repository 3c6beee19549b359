"""A model on the Hub, and its Space pushed by the command; `tests/journey` opens one."""

import re

import pytest

from ftmamba.__main__ import main
from hub_cards.push import push_checkpoint
from hub_cards.space import space_of
from tests.hub.server import TOKEN
from tests.pushing.conftest import here
from tests.space.conftest import EXAMPLE

__all__ = ["here"]

MODEL, SPACE = "tester/space-films", "tester/space-demo"


@pytest.fixture
def hub(here, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    push_checkpoint(model_folder, MODEL, api=here.api())
    return here


def test_a_pushed_space_holds_its_page_and_pins_the_models_commit(hub, capsys):
    assert main(["space", MODEL, "--space", SPACE, "--private"]) == 0
    assert SPACE in capsys.readouterr().out
    files = hub.files(f"spaces/{SPACE}")
    assert files.keys() >= {"app.py", "README.md", "requirements.txt", "page.py", "page.css"}
    pinned = re.findall(r'revision="([0-9a-f]{40})"', files["app.py"].decode())
    assert pinned == [hub.api().model_info(MODEL).sha]
    assert hub.repositories[f"spaces/{SPACE}"].private


@pytest.mark.parametrize(
    ("model", "space", "message"),
    [
        ("tester/nothing", "tester/x", "no such repository on the Hub"),
        (MODEL, "somebody/demo", "somebody/demo"),
    ],
)
def test_neither_a_missing_model_nor_a_strangers_space_is_written(
    hub, capsys, model, space, message
):
    assert main(["space", model, "--space", space]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert TOKEN not in printed.err + printed.out
    assert not any(path.startswith("spaces/") for path in hub.repositories)


def test_the_example_is_made_up_of_frequent_values(model_folder):
    facts = space_of(str(model_folder))
    assert set(facts.example) <= set(EXAMPLE)
    assert facts.revision == ""
