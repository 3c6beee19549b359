"""The notebooks run from beginning to end, and are committed without outputs."""

import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_of(path):
    """Return the code of each cell, which must hold no output."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not one.outputs and one.execution_count is None for one in cells), path
    return [cell.source for cell in cells]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_notebooks_run(folder, monkeypatch):
    """In one kernel, which forgets all names between two: its imports are waited for once."""
    from nbclient import NotebookClient

    assert len(NOTEBOOKS) >= 2
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    sources = [text for path in NOTEBOOKS for text in (*code_of(path), "%reset -f")]
    cells = [nbformat.v4.new_code_cell(text) for text in sources]
    together = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(together, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    assert sum(bool(cell.outputs) for cell in cells) >= 8
