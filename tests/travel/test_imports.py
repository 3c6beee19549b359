"""Every import of the code that travels resolves where it arrives: in one flat folder.

Transformers finds a file's needs by reading it: `from .name import x` names a sibling to copy, and
an absolute import, wherever it stands outside `try`, a package the user must have.
"""

import ast
import json
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import modeling_ftmamba

FOLDER = Path(modeling_ftmamba.__file__).parent
SOURCES = sorted(FOLDER.glob("*.py"))
PACKAGES = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}
ALLOWED = PACKAGES | sys.stdlib_module_names
ALLOWED_IN_TRY = ALLOWED | {"pyarrow", "triton", "mamba_ssm"}
SIBLINGS = {path.stem for path in SOURCES}


def imports_of(node: ast.AST, *, in_try: bool = False) -> list[tuple[ast.stmt, bool]]:
    """Return every import statement below a node, and whether a `try` guards it."""
    found: list[tuple[ast.stmt, bool]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append((child, in_try))
        found += imports_of(child, in_try=in_try or isinstance(child, ast.Try))
    return found


def problems_of(source: str) -> list[str]:
    """Return what a stranger's machine, or Transformers' reading of the file, would stumble on."""
    problems = []
    for statement, in_try in imports_of(ast.parse(source)):
        text = ast.unparse(statement)
        if isinstance(statement, ast.ImportFrom) and statement.level:
            module = statement.module or ""
            if statement.level > 1 or "." in module or not module:
                problems.append(f"{text}: only `from .name import thing` is copied")
            elif module not in SIBLINGS:
                problems.append(f"{text}: there is no {module}.py")
            continue
        given = (
            [statement.module or ""]
            if isinstance(statement, ast.ImportFrom)
            else [alias.name for alias in statement.names]
        )
        allowed = ALLOWED_IN_TRY if in_try else ALLOWED
        problems += [f"{text}: not {name}" for name in given if name.split(".")[0] not in allowed]
    return problems


def siblings_of(source: str) -> set[str]:
    """Return the sibling modules that a file imports."""
    return {
        statement.module or ""
        for statement, _ in imports_of(ast.parse(source))
        if isinstance(statement, ast.ImportFrom) and statement.level
    }


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_is_code_to_look_at():
    assert len(SOURCES) > 8
    assert {"modeling_ftmamba", "processing_ftmamba", "configuration_ftmamba"} <= SIBLINGS
    assert sum(len(imports_of(ast.parse(text_of(path)))) for path in SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_imports_only_what_is_there_on_arrival(path):
    assert problems_of(text_of(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from . import columns",
        "from .columns.sub import x",
        "from ..ftmamba import x",
        "from .no_such_file import x",
        "from ftmamba.data import x",
        "import modeling_ftmamba.configuration_ftmamba",
        "import scipy",
        "def f():\n    import pyarrow as pa",
        "if TYPE_CHECKING:\n    from datasets import Dataset",
        "try:\n    import scipy\nexcept ImportError:\n    scipy = None",
    ],
)
def test_a_forbidden_import_is_seen(source):
    assert len(problems_of(source)) == 1


def test_a_guarded_pyarrow_is_allowed():
    assert problems_of("try:\n    import pyarrow as pa\nexcept ImportError:\n    pa = None") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_transformers_reads_the_same_imports(path):
    assert set(get_relative_imports(path)) == siblings_of(text_of(path))
    assert set(get_imports(path)) <= ALLOWED


def test_a_checkpoint_holds_every_file_its_code_needs(travelling):
    for one in travelling.values():
        maps = [
            json.loads(text_of(one.folder / name))["auto_map"]
            for name in ("config.json", "preprocessor_config.json")
        ]
        assert [sorted(auto_map) for auto_map in maps] == [
            ["AutoConfig", "AutoModel"],
            ["AutoFeatureExtractor", "AutoProcessor"],
        ]
        waiting = {name.split(".")[0] for auto_map in maps for name in auto_map.values()}
        (pipeline,) = json.loads(text_of(one.folder / "config.json"))["custom_pipelines"].values()
        waiting.add(pipeline["impl"].split(".")[0])
        needed: set[str] = set()
        while waiting:
            needed |= waiting
            found = [siblings_of(text_of(one.folder / f"{name}.py")) for name in waiting]
            waiting = set().union(*found) - needed
        assert needed == {path.stem for path in one.folder.glob("*.py")}
        assert needed == SIBLINGS - {"__init__"}


def test_a_checkpoint_holds_the_code_that_trained_it(travelling):
    for one in travelling.values():
        for path in one.folder.glob("*.py"):
            assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
