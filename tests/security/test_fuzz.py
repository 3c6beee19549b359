"""Thousands of broken checkpoints: each loads, or is refused in words; nothing else happens.

`FTMAMBA_FUZZ_EXAMPLES` sets how many of them there are.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from ftmamba import Recommender
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

from .mutations import Mutation, mutations
from .tensor_files import sign_again
from .watch import limited, refusal

N_EXAMPLES = int(os.environ.get("FTMAMBA_FUZZ_EXAMPLES", "2000"))
RECORD = {"age": 31, "gender": "F", "occupation": "never seen", "taken": ["i01", "new"]}


def use_recommender(folder: Path) -> None:
    """Load, and do with it what a person does."""
    recommender = Recommender.from_pretrained(folder)
    keys = {one.item_key for one in recommender.recommend(record=RECORD, k=1)}
    recommender.similar_items(keys.pop(), k=1)
    if recommender.users is not None and len(recommender.users):
        recommender.recommend(user_key=recommender.users.keys[0], k=1)


def use_extractor(folder: Path) -> None:
    """Load, and encode records of both towers."""
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    extractor(users=RECORD, items=[{"item_id": "i01", "year": 1990, "genres": ["war", "x"]}, {}])


def use_model(folder: Path) -> None:
    """Load, as Transformers does."""
    FTMambaTwoTowerModel.from_pretrained(folder)


USES: tuple[Callable[[Path], None], ...] = (use_recommender, use_extractor, use_model)
common = settings(
    deadline=None,  # `watch.hurried` counts the process's own seconds
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def copy_of(source: Path) -> Path:
    """Return a copy without the code, which no loader here reads; small files are linked."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "films"
    shutil.copytree(
        source, folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.py", "*.png")
    )
    return folder


def try_one(source: Path, changes: list[Mutation], use: Callable[[Path], None]) -> str:
    """Break a copy of a checkpoint and use it."""
    folder = copy_of(source)
    try:
        for change in changes:
            change.apply(folder)
        sign_again(folder)
        return refusal(lambda: use(folder), folder)
    finally:
        shutil.rmtree(folder.parent)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_broken_checkpoints_load_or_are_refused(
    checkpoint_folder: Path, sharded_folder: Path, history_folder: Path
) -> None:
    folders = [checkpoint_folder, sharded_folder, history_folder]
    refused: list[str] = []

    @settings(common, max_examples=N_EXAMPLES)
    @given(st.sampled_from(folders), mutations(), st.sampled_from((*USES, use_recommender)))
    def run(folder: Path, changes: list[Mutation], use: Callable[[Path], None]) -> None:
        refused.append(try_one(folder, changes, use))
        event("refused" if refused[-1] else "works")

    for folder in folders:
        assert [try_one(folder, [], use) for use in USES] == ["", "", ""]
    with limited():
        run()
    n_refused = sum(map(bool, refused))
    assert len(refused) >= N_EXAMPLES
    assert 0.3 < n_refused / len(refused) < 0.98
    assert len(set(refused)) > N_EXAMPLES // 20
