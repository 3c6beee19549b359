"""Imports point one way without cycles, and the code that travels stays small."""

from pathlib import Path

import pytest

from benchmarks.structure import cycles, module_edges, read_modules, room_edges, room_of

ROOT = Path(__file__).parents[2]
MODULES = read_modules(ROOT)
ARROWS = {
    "modeling_ftmamba": set(),
    "ftmamba": {"modeling_ftmamba"},
    "hub_cards": {"modeling_ftmamba", "ftmamba"},
    "train_accelerate.py": {"modeling_ftmamba", "ftmamba", "hub_cards"},
}
"""What each part may import of the other parts."""

MAY_USE_CARDS = (
    "ftmamba/commands/", "ftmamba/__main__.py", "ftmamba/recommender.py", "ftmamba/run.py"
)  # fmt: skip
"""The front door, which stands above the cards."""


def part_of(path: str) -> str:
    return path.split("/")[0]


def test_every_part_has_modules_to_look_at():
    counts = {part: sum(part_of(path) == part for path in MODULES) for part in ARROWS}
    assert counts["train_accelerate.py"] == 1
    assert counts["modeling_ftmamba"] >= 9
    assert counts["ftmamba"] > 50
    assert counts["hub_cards"] >= 3
    assert sum(len(module.imports) for module in MODULES.values()) > 200


@pytest.mark.parametrize("path", [path for path in MODULES if path != "setup.py"])
def test_imports_point_one_way(path):
    part = part_of(path)
    imported = {part_of(name) for name in MODULES[path].imports} - {part}
    allowed = ARROWS[part] | ({"hub_cards"} if path.startswith(MAY_USE_CARDS) else set())
    assert imported <= allowed


def test_no_modules_import_each_other_around():
    assert cycles(module_edges(MODULES)) == []


def test_no_folders_import_each_other_around():
    outside = {name: m for name, m in MODULES.items() if not name.startswith(MAY_USE_CARDS)}
    assert cycles(room_edges(outside)) == []


def test_a_cycle_is_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert cycles(edges) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "source",
    [
        "import ftmamba.data.tables as tables",
        "from ftmamba.data import tables",
        "from ftmamba.data.tables import load_tables",
        "def f():\n    from ..data.tables import load_tables",
        "if TYPE_CHECKING:\n    import os, ftmamba.data.tables",
    ],
)
def test_an_import_is_seen_in_every_form(source, tmp_path):
    for name, text in (("data/tables", ""), ("training/loop", source)):
        file = tmp_path / "ftmamba" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    modules = read_modules(tmp_path)
    assert modules["ftmamba/training/loop.py"].imports == {"ftmamba/data/tables.py"}
    assert room_of("ftmamba/training/loop.py") == "ftmamba/training"
