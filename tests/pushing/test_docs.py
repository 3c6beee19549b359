"""What docs/hub.md says to type can be typed."""

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import yaml

from ftmamba.checkpoint import PUBLISHED_FILES
from ftmamba.commands import COMMANDS
from ftmamba.flags import load_recipe
from ftmamba.recipe import recipe_from_dict

TEXT = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


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


def test_what_the_document_says_to_type_is_understood():
    parser = ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name))
    lines = [
        shlex.split(line, comments=True)[3:]
        for line in LINES
        if line.startswith("python -m ftmamba ")
    ]
    assert len(lines) >= 8
    shown = {parser.parse_args(line).command for line in lines}
    assert {"push", "card", "dataset-card", "runs", "space"} <= shown


def test_the_recipe_in_the_document_is_one_and_its_pictures_are_there():
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    recipe = recipe_from_dict(yaml.safe_load(block))
    assert recipe.card.country == "FRA"
    assert recipe.evaluation.user_groups == ("occupation", "age")
    pictures = re.findall(r'src="([^"]+)"', TEXT)
    assert len(pictures) == 3
    for name in pictures:
        assert (Path(__file__).parents[2] / "docs" / name).is_file()
