"""The code that travels is small, and every import of it resolves where it arrives: in one folder.

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
TRAVELLING = (
    "catalogue", "configuration_ftmamba", "encoders", "mixers", "modeling_ftmamba", "network",
    "pipeline_ftmamba", "processing_ftmamba", "user_state",
)  # fmt: skip
MOST_LINES = 3_967
PACKAGES = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}
ALLOWED = PACKAGES | sys.stdlib_module_names
ALLOWED_IN_TRY = ALLOWED | {"pyarrow"}


def source_of(name):
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def imports_of(node, *, in_try=False):
    """Return every import statement below a node, and whether a `try` guards it."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append((child, in_try))
        found += imports_of(child, in_try=in_try or isinstance(child, ast.Try))
    return found


def problems_of(source):
    """Return what a stranger's machine, or Transformers' reading of the file, would stumble on."""
    problems = []
    for statement, in_try in imports_of(ast.parse(source)):
        text = ast.unparse(statement)
        if isinstance(statement, ast.ImportFrom) and statement.level:
            if statement.level > 1 or statement.module not in TRAVELLING:
                problems.append(f"{text}: only `from .name import thing` of a sibling is copied")
            continue
        is_from = isinstance(statement, ast.ImportFrom)
        given = [statement.module or ""] if is_from else [one.name for one in statement.names]
        allowed = ALLOWED_IN_TRY if in_try else ALLOWED
        problems += [f"{text}: not {name}" for name in given if name.split(".")[0] not in allowed]
    return problems


def test_nine_files_of_few_lines_travel():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"__init__", *TRAVELLING}
    assert sum(source_of(name).count("\n") for name in TRAVELLING) <= MOST_LINES


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_file_imports_only_what_is_there_on_arrival(name):
    source = source_of(name)
    assert problems_of(source) == []
    siblings = {
        statement.module
        for statement, _ in imports_of(ast.parse(source))
        if isinstance(statement, ast.ImportFrom) and statement.level
    }
    assert set(get_relative_imports(FOLDER / f"{name}.py")) == siblings
    assert set(get_imports(FOLDER / f"{name}.py")) <= ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "from . import encoders",
        "from .encoders.sub import x",
        "from ..ftmamba import x",
        "from .no_such_file import x",
        "from ftmamba.data import x",
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


def test_a_checkpoint_holds_exactly_this_code_and_says_where_its_classes_are(travelling):
    for one in travelling.values():
        assert {path.stem for path in one.folder.glob("*.py")} == set(TRAVELLING)
        for path in one.folder.glob("*.py"):
            assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
        config, extractor = (
            json.loads((one.folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "preprocessor_config.json")
        )
        assert sorted(config["auto_map"]) == ["AutoConfig", "AutoModel"]
        assert sorted(extractor["auto_map"]) == ["AutoFeatureExtractor", "AutoProcessor"]
        (pipeline,) = config["custom_pipelines"].values()
        maps = (*config["auto_map"].values(), *extractor["auto_map"].values(), pipeline["impl"])
        for reference in maps:
            module, name = reference.split(".")
            assert f"class {name}(" in source_of(module)
