"""Imports point one way: `modeling_ftmamba` <- `ftmamba` <- `hub_cards` <- commands, script."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARROWS = {
    "modeling_ftmamba": set(),
    "ftmamba": {"modeling_ftmamba"},
    "hub_cards": {"modeling_ftmamba", "ftmamba"},
    "train_accelerate.py": {"modeling_ftmamba", "ftmamba", "hub_cards"},
}
"""What each part may import of the other parts."""

PARTS = {part.removesuffix(".py") for part in ARROWS} | {"tests", "benchmarks", "configuration"}
MAY_USE_CARDS = ("ftmamba/commands/", "ftmamba/__main__.py")
"""The files in `ftmamba` that may import `hub_cards`: the command line."""

FILES = sorted(
    path.relative_to(ROOT)
    for part in ARROWS
    for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
)


def parts_imported_by(source: str) -> set[str]:
    """Return the parts of this project that a source imports, wherever the statement stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return PARTS & {name.split(".")[0] for name in names}


def test_every_part_has_files_to_look_at():
    counts = {part: sum(path.parts[0] == part for path in FILES) for part in ARROWS}
    assert counts["train_accelerate.py"] == 1
    assert counts["modeling_ftmamba"] >= 9
    assert counts["ftmamba"] > 50
    assert counts["hub_cards"] >= 3
    imported = [parts_imported_by((ROOT / path).read_text(encoding="utf-8")) for path in FILES]
    assert sum("modeling_ftmamba" in parts for parts in imported) > 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    part = path.parts[0]
    imported = parts_imported_by((ROOT / path).read_text(encoding="utf-8")) - {part}
    if path.as_posix().startswith(MAY_USE_CARDS):
        imported -= {"hub_cards"}
    assert imported <= ARROWS[part]


@pytest.mark.parametrize(
    "source",
    [
        "import ftmamba",
        "import ftmamba.data.tables as tables",
        "from ftmamba.data import Tables",
        "def f():\n    from ftmamba import Recommender",
        "if TYPE_CHECKING:\n    import os, ftmamba",
    ],
)
def test_an_import_is_seen_in_every_form(source):
    assert parts_imported_by(source) == {"ftmamba"}


def test_a_sibling_of_like_name_is_no_part():
    assert parts_imported_by("from .configuration import x\nimport ftmamba_extra") == set()
