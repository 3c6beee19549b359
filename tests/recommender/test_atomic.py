import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ftmamba.atomic import finish_swap, whole_file, whole_folder, whole_folder_at

OWNED = ("weights", "*.py", "local")


def fill(folder, text):
    (folder / "weights").write_text(text)
    (folder / "local").mkdir()
    (folder / "local" / "users").write_text(text)


@pytest.fixture
def run(tmp_path):
    """A folder saved once, with training state beside it."""
    folder = tmp_path / "run"
    with whole_folder(folder, owned=OWNED) as new:
        fill(new, "first")
        (new / "old.py").write_text("first")
    (folder / "step_10").mkdir()
    (folder / "step_10" / "optimizer").write_text("state")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_save_replaces_its_own_files_and_keeps_the_others(run):
    with whole_folder(run, owned=OWNED) as new:
        fill(new, "second")
    assert (run / "weights").read_text() == "second"
    assert (run / "step_10" / "optimizer").read_text() == "state"
    assert names(run) == ["local", "step_10", "weights"]
    assert names(run.parent) == ["run"]


def test_a_file_that_safetensors_writes_has_the_mode_of_the_umask(tmp_path):
    with whole_file(tmp_path / "file") as temporary:
        save_file({"a": np.zeros(3)}, temporary)
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_earlier_folder_whole(run, error):
    with pytest.raises(type(error)), whole_folder(run, owned=OWNED) as new:  # noqa: PT012
        (new / "weights").write_text("half")
        raise error
    assert (run / "weights").read_text() == "first"
    assert names(run) == ["local", "old.py", "step_10", "weights"]
    assert names(run.parent) == ["run"]


KILLED = """
import os, sys
from pathlib import Path
from ftmamba.atomic import whole_folder
folder, n_renames = Path(sys.argv[1]), int(sys.argv[2])
rename, count = Path.rename, 0
def rename_or_die(self, target):
    global count
    if count == n_renames:
        os._exit(9)
    count += 1
    return rename(self, target)
Path.rename = rename_or_die
with whole_folder(folder, owned=("weights", "*.py", "local")) as new:
    (new / "weights").write_text("second")
"""


@pytest.mark.parametrize(
    ("n_renames", "expected"), [(0, "first"), (1, "first"), (2, "second"), (3, "second")]
)
def test_a_kill_at_any_rename_leaves_a_whole_folder(run, n_renames, expected):
    died = subprocess.run([sys.executable, "-c", KILLED, run, str(n_renames)], check=False)
    assert died.returncode == (9 if n_renames < 3 else 0)
    assert run.with_name(".run.new").exists() == (n_renames < 2)
    assert (whole_folder_at(run) / "weights").read_text() == expected
    finish_swap(run, owned=OWNED)
    assert (run / "weights").read_text() == expected
    assert (run / "step_10" / "optimizer").read_text() == "state"
    assert (run / "local").exists() == (expected == "first")
    with whole_folder(run, owned=OWNED) as new:
        fill(new, "third")
    assert names(run.parent) == ["run"]
    assert (run / "weights").read_text() == "third"


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from ftmamba.atomic import whole_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with whole_file(Path(sys.argv[1])) as temporary:
    save_file({"a": np.zeros(1_000_000)}, temporary)
"""


def test_a_write_that_runs_out_of_room_leaves_the_earlier_file(tmp_path: Path):
    path = tmp_path / "catalogue"
    path.write_text("first")
    command = [sys.executable, "-c", LIMITED, path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "no room left on the disk while writing" in done.stderr
    with pytest.raises(OSError, match="no room left on the disk"), whole_file(path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["catalogue"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no room left on the disk"), (errno.EBUSY, "is it a mount point")],
)
def test_what_a_person_can_cure_is_named_and_changes_nothing(run, monkeypatch, number, message):
    def fail(self, target):
        raise OSError(number, "in the words of the system", str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match=message), whole_folder(run, owned=OWNED) as new:
        fill(new, "second")
    assert (run / "weights").read_text() == "first"
