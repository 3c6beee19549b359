import ast
import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from huggingface_hub import RepoCard

from hub_cards.space import GRADIO_VERSION, SpaceFacts, space_files, write_space

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = SpaceFacts("somebody/films", COMMIT, {"age": 31, "job": 'a "doctor"'}, licence="mit")
ALLOWED = {"torch", "transformers", "gradio", "page", "ftmamba"} | set(sys.stdlib_module_names)


def imported_by(source):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_page_needs_nothing_but_gradio_torch_and_transformers():
    files = space_files(FACTS)
    sources = {name: text for name, text in files.items() if name.endswith(".py")}
    assert set(sources) == {"app.py", "page.py"}
    found = {name: imported_by(source) for name, source in sources.items()}
    assert {"torch", "transformers", "gradio"} <= set().union(*found.values())
    for name, imported in found.items():
        assert imported <= ALLOWED, name


def test_the_launcher_names_model_commit_and_example(tmp_path):
    write_space(tmp_path / "out", FACTS)
    (tmp_path / "out" / "page.py").write_text(
        "import json\ndef main(model, **rest): print(json.dumps([model, rest]))\n"
    )
    printed = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path / "out", check=True, capture_output=True, text=True
    ).stdout
    model, rest = json.loads(printed)
    assert model == "somebody/films"
    assert rest == {"revision": COMMIT, "example": FACTS.example}


def test_the_hub_reads_what_space_it_is_of_the_versions_that_the_tests_ran_with():
    data = RepoCard(space_files(FACTS)["README.md"]).data.to_dict()
    assert data["sdk"] == "gradio"
    assert data["app_file"] == "app.py"
    assert data["models"] == ["somebody/films"]
    assert data["license"] == "mit"
    assert data["title"] == "What films recommends"
    assert version("gradio") == data["sdk_version"] == GRADIO_VERSION
    lines = space_files(FACTS)["requirements.txt"].splitlines()
    pinned = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
    assert lines == [*pinned, "ftmamba"]


def test_titles_and_models_bring_no_markup():
    facts = SpaceFacts("a/b", COMMIT, title="<script>x</script>\n---\n# [a](b)", licence="x\n: y")
    files = space_files(facts)
    card = RepoCard(files["README.md"])
    assert card.data.to_dict()["title"].startswith("<script>x</script> --- # [a](b)")
    assert "<script>" not in card.text
    ast.parse(space_files(SpaceFacts('"""\nimport os', "x'"))["app.py"])


def test_a_folder_of_something_else_is_left_alone_and_that_of_a_space_written_anew(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which is no part of a Space"):
        write_space(tmp_path, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    write_space(tmp_path / "out", FACTS)
    write_space(tmp_path / "out", SpaceFacts("other/model", COMMIT))
    assert "other/model" in (tmp_path / "out" / "app.py").read_text()
