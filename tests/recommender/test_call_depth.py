"""How many files of the project a recommendation passes through, and how deep the calls go."""

import sys
from pathlib import Path

import pytest

import ftmamba
import modeling_ftmamba
from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from tests.streaming.history_checkpoint import make_checkpoint

PARTS = tuple(str(Path(package.__file__).parent) for package in (ftmamba, modeling_ftmamba))
MOST_FILES, DEEPEST = 14, 9
ARITHMETIC = ("mixers.py", "/kernels/")
"""Where a layer's arithmetic begins: how it is done there depends on what the machine has."""
RECORD = {"age": 31, "occupation": "doctor"}
HISTORY = {"age": 31, "films": ["i01", {"item": "i02", "time": 10, "price": 3.5}]}


def calls_of(act):
    """Return the project's files that a call passes through, and its deepest chain of frames.

    Frames of other packages are not counted, such as torch's around a module's `forward`, nor those
    of comprehensions, which newer interpreters have not, nor those below a mixer's or a kernel's.
    """
    files, deepest = set(), []

    def is_ours(frame):
        code = frame.f_code
        return code.co_filename.startswith(PARTS) and not code.co_name.startswith("<")

    def profile(frame, event, _argument):
        if event != "call" or not is_ours(frame):
            return
        files.add(Path(frame.f_code.co_filename).name)
        chain, n_arithmetic = [], 0
        while frame is not None:
            if is_ours(frame):
                chain.insert(0, f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
                n_arithmetic += any(part in frame.f_code.co_filename for part in ARITHMETIC)
            frame = frame.f_back
        if len(chain) > len(deepest) and n_arithmetic <= 1:
            deepest[:] = chain

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return files, deepest


@pytest.fixture(scope="module")
def with_history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth") / "films"
    save_checkpoint(folder, make_checkpoint())
    return folder


@pytest.mark.parametrize("kind", ["profile", "history"])
def test_a_recommendation_passes_few_files_and_is_not_deep(kind, checkpoint_folder, with_history):
    folder, record = {
        "profile": (checkpoint_folder, RECORD),
        "history": (with_history, HISTORY),
    }[kind]
    recommender = Recommender.from_pretrained(folder)
    recommender.recommend(record=record, k=3)
    files, deepest = calls_of(lambda: recommender.recommend(record=record, k=3))
    assert {"recommender.py", "processing_ftmamba.py", "network.py", "catalogue.py"} <= files
    assert len(files) <= MOST_FILES, sorted(files)
    assert len(deepest) <= DEEPEST, " > ".join(deepest)
