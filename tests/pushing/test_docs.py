"""What docs/hub.md says to type can be typed."""

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

from ftmamba.checkpoint import PUBLISHED_FILES
from ftmamba.commands.hub import add_push_arguments
from ftmamba.flags import load_recipe

TEXT = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


def test_the_commands_that_push_are_understood():
    parser = ArgumentParser()
    add_push_arguments(parser)
    commands = [line for line in LINES if line.startswith("python -m ftmamba push ")]
    assert len(commands) >= 4
    for command in commands:
        assert parser.parse_args(shlex.split(command)[4:]).repository.endswith("/films")


def test_the_runs_that_push_are_understood():
    start = "accelerate launch train_accelerate.py "
    runs = [line.removeprefix(start) for line in LINES if line.startswith(start)]
    assert len(runs) >= 2
    for run in runs:
        load_recipe(shlex.split(run))
    flags = re.findall(r"^\| `(--\w+)(?: ([\w]+))?` \|", TEXT, re.MULTILINE)
    assert len(flags) >= 5
    options = [word for flag in flags if flag[0] != "--hub_strategy" for word in flag if word]
    hub = ["--push_to_hub", "--hub_model_id", "me/films", "--checkpointing_steps", "epoch"]
    load_recipe(["--data", "movielens-100k", *hub, *options, "--hub_strategy", "checkpoint"])


def test_every_published_file_is_named():
    for pattern in PUBLISHED_FILES:
        name = "model.safetensors" if pattern.startswith("model") else pattern
        assert f"`{name}`" in TEXT, name
