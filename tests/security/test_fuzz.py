"""Thousands of broken checkpoints: each loads, or is refused in words; nothing else happens.

`FTMAMBA_FUZZ_EXAMPLES` sets how many of them there are.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from ftmamba import Recommender
from ftmamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.streaming.history_checkpoint import make_checkpoint

from .mutations import break_checkpoint, sign_again
from .watch import limited, refusal

N_EXAMPLES = int(os.environ.get("FTMAMBA_FUZZ_EXAMPLES", "2000"))
RECORD = {"age": 31, "gender": "F", "occupation": "never seen", "films": ["i01", "new"]}


def use_recommender(folder: Path) -> None:
    """Load, and recommend."""
    recommender = Recommender.from_pretrained(folder)
    keys = {one.item_key for one in recommender.recommend(record=RECORD, k=1)}
    recommender.similar_items(keys.pop(), k=1)
    if recommender.users is not None and len(recommender.users):
        recommender.recommend(user_key=recommender.users.keys[0], k=1)


def use_checkpoint(folder: Path) -> None:
    """Load the model of Transformers, and encode items."""
    items = [{"item_id": "i01", "year": 1990, "genres": ["war", "x"]}, {}]
    load_checkpoint(folder).extractor(items=items)


USES: tuple[Callable[[Path], None], ...] = (use_recommender, use_checkpoint)


def try_one(source: Path, rng: Random | None, use: Callable[[Path], None]) -> str:
    """Break a copy of a checkpoint, without the code, which no loader here reads, and use it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "films"
    ignored = shutil.ignore_patterns("*.py", "*.png")
    shutil.copytree(source, folder, copy_function=os.link, ignore=ignored)
    try:
        if rng is not None:
            break_checkpoint(rng, folder)
        sign_again(folder)
        return refusal(lambda: use(folder), folder)
    finally:
        shutil.rmtree(folder.parent)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_broken_checkpoints_load_or_are_refused(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one-file", "sharded", "history")]
    save_checkpoint(folders[0], tiny_checkpoint)
    save_checkpoint(folders[1], tiny_checkpoint, max_shard_size="4KB")
    save_checkpoint(folders[2], make_checkpoint())
    assert len(list(folders[1].glob("model-*.safetensors"))) > 2
    for folder in folders:
        assert [try_one(folder, None, use) for use in USES] == ["", ""]
    refused: list[str] = []
    with limited():
        for number in range(N_EXAMPLES):
            rng = Random(number)
            folder, use = rng.choice(folders), rng.choice((*USES, use_recommender))
            try:
                refused.append(try_one(folder, rng, use))
            except BaseException as error:
                error.add_note(f"in example {number}, of {folder.name} by {use.__name__}")
                raise
    n_refused = sum(map(bool, refused))
    assert 0.3 < n_refused / len(refused) < 0.98
    assert len(set(refused)) > N_EXAMPLES // 20
