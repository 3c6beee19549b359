"""From a recipe and three files to a trained model, through `train_accelerate.py` itself."""

import runpy
from pathlib import Path

import pytest
import yaml

from ftmamba.training.run import check_processes
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor
from tests.made_up_tables import checkerboard, write_csv

from .conftest import forget_accelerate

SCRIPT = Path(__file__).parents[2] / "train_accelerate.py"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "projection_size": 16}


@pytest.fixture
def main():
    yield runpy.run_path(str(SCRIPT))["main"]
    forget_accelerate()


@pytest.fixture
def argv(tmp_path):
    """Write the tables and a recipe for them; return its flags."""
    tables = checkerboard(12, popularity_days=(1, 7))
    recipe = {
        "data": {**write_csv(tables, tmp_path), "cache_dir": str(tmp_path / "cache")},
        "schema": tables.schema.to_dict(),
        "split": {"kind": "global-time", "cut": 0.8, "test_fraction": 0.2},
        "model": {"preset": "ft-mamba-small", "overrides": SMALL},
        "training": {"batch_size": 16, "num_epochs": 3, "learning_rate": "1e-2"},
        "evaluation": {"k": [3], "selection_metric": "NDCG@3"},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", str(tmp_path / "recipe.yaml")]


def test_three_files_become_a_model_that_loads(main, argv, tmp_path, caplog):
    assert main(argv) == 0
    assert "epoch 3/3" in caplog.text
    assert "training again on train + validation" in caplog.text
    model = FTMambaTwoTowerModel.from_pretrained(tmp_path / "run")
    extractor = FTMambaFeatureExtractor.from_pretrained(tmp_path / "run")
    records = extractor(users={"user_id": "u1", "age": 30.0}, items={"item_id": "i3"})
    assert model(**records).scores.isfinite().all()


def test_tracking_writes_losses_and_scores_to_tensorboard(main, argv, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--with_tracking", "--log_every_steps", "2", "--refit", "false"]
    assert main([*argv, *flags]) == 0
    events = EventAccumulator(str(next((tmp_path / "run" / "logs").rglob("events*")).parent))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "epoch/loss", "epoch/score"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("epoch/score")) == 3
    assert [event.step for event in events.Scalars("train/loss")][:2] == [2, 4]


def test_processes_that_are_not_joined_are_refused(accelerator, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but Accelerate joins 1"):
        check_processes(accelerator)


def test_a_wrong_recipe_is_one_line_and_exit_code_2(main, argv, capsys):
    assert main([*argv, "--lerning_rate", "1"]) == 2
    assert main([*argv, "--users", "no-such.csv"]) == 2
    assert main([*argv, "--schema", "{users: {key: user_idd}}"]) == 2
    assert main([*argv, "--baselines", "popularty"]) == 2
    assert main([*argv, "--rivals", "{X: {prset: mlp-small}}"]) == 2
    for rival in ("preset: mlp-smallish", "preset: mlp-small, training: {lerning_rate: 1}"):
        assert main([*argv, "--rivals", f"{{X: {{{rival}}}}}"]) == 2
    assert main([*argv, "--rivals", "{X: {preset: mlp-small, overrides: {hiden_size: 8}}}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    told = ("'--learning_rate'", "no-such.csv", "", "'popularity'", "'preset'", "'mlp-small'",
            "'learning_rate'", "'hidden_size'")  # fmt: skip
    for line, words in zip(lines, told, strict=True):
        assert words in line
        assert "did you mean" in line or not words.startswith("'")
    assert "rivals.X.training" in lines[6]
