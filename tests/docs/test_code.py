"""Every block of code in README and docs runs, in the order of the page, on small tables.

What cannot run here is checked as far as it goes: a recipe is read, a benchmark is there, a command
that goes to the Hub or to a Redis is parsed.
"""

import json
import re
import shlex
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import pytest
import yaml

from ftmamba.__main__ import main
from ftmamba.commands import COMMANDS
from ftmamba.comparison import check_rivals_and_baselines
from ftmamba.data.schema import Schema
from ftmamba.flags import load_recipe
from ftmamba.recipe import choose_variant, recipe_from_dict

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")
)]  # fmt: skip
AWAY = ("push", "dataset-card", "space", "card", "redis://", "--follow", "ftmamba serve")
"""Words of a line that is parsed only: it goes elsewhere, or has a test of its own."""
STARTS = ("accelerate launch train_accelerate.py", "python -m ftmamba", "python -m benchmarks.")
ON_THE_HUB = re.compile(r'"me/films", revision="0123abc..."')


def blocks_of(page):
    """Return language and text of each block of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [
        (language, re.sub(f"^{indent}", "", code, flags=re.M)) for indent, language, code in found
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_in_the_order_of_the_page(page, folder, capsys):
    names = {}
    for language, code in blocks_of(page):
        if language == "python":
            here = ON_THE_HUB.sub('"runs/quickstart"', code)
            exec(compile(here, page, "exec"), names)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line, capsys)
        elif language == "yaml":
            check_yaml(code)
        elif language == "json":
            json.loads(code)
        else:
            assert language == "text", f"a block of {page} has the language {language!r}"


def run_line(line, capsys):
    """Run a line of a shell, or check it as far as it goes."""
    words = shlex.split(line, comments=True)
    match words:
        case []:
            pass
        case ["python", "-m", "ftmamba", *rest] | ["ftmamba", *rest]:
            run_command(rest, line, capsys)
        case ["accelerate", "launch", *rest]:
            flags = rest[rest.index("train_accelerate.py") + 1 :]
            if flags != ["--help"]:
                load_recipe(flags)
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line
        case ["python", script, *rest]:
            assert (ROOT / script).is_file(), line
            if "--" in rest:
                load_recipe(rest[rest.index("--") + 1 :])
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), line
        case ["pip", "install", *rest]:
            check_extras(rest)
        case ["git" | "cd" | "hf" | "curl", *_]:
            pass
        case _:
            raise AssertionError(f"no rule says how to run {line!r}")


def run_command(words, line, capsys):
    """Run a command of `ftmamba`, or parse it if it goes elsewhere."""
    if not any(word in line for word in AWAY):
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as end:  # of --help
            code = end.code
        assert code == 0, line
        assert capsys.readouterr().out.strip(), line
        return
    parser = ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name))
    assert parser.parse_args(words).command == words[0]


def check_yaml(code):
    """Read a recipe, or a part of one, with its schema; `# NAME.yaml` above it names its file."""
    if name := re.match(r"# (\S+\.yaml)\n", code):
        Path(name[1]).write_text(code, encoding="utf-8")
    recipe = recipe_from_dict(choose_variant(yaml.safe_load(code), None))
    if recipe.schema is not None:
        assert Schema.from_dict(recipe.schema).to_dict()["users"]["key"] == "user_id"
    check_rivals_and_baselines(recipe)


def check_extras(words):
    """Check that an extra of this package is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= project["optional-dependencies"].keys(), words


def test_an_unknown_line_is_not_passed_over(capsys):
    with pytest.raises(AssertionError, match="no rule says how to run 'rm -r runs'"):
        run_line("rm -r runs", capsys)


def test_there_is_code_to_run():
    languages = [language for page in PAGES for language, _ in blocks_of(page)]
    assert languages.count("python") >= 8
    assert languages.count("bash") >= 12
    assert languages.count("yaml") >= 5
    assert "```" not in re.sub(
        r"^ *```.*$", "", "".join((ROOT / page).read_text() for page in PAGES), flags=re.M
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_root_folder_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    paths = [link for link in links if not link.startswith("http")]
    for path in paths:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
