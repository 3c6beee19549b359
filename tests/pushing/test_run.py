"""Training pushes what its strategy says, whatever the Hub does."""

import logging
import shlex
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load

from ftmamba.__main__ import main as command_line
from ftmamba.checkpoint import load_checkpoint
from ftmamba.training.loop import TrainingLoop
from tests.hub.server import READ_TOKEN, STRANGER_TOKEN

REPO = "tester/films"
EVERY_EPOCH = ["--checkpointing_steps", "epoch"]


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repositories[REPO].history(revision)][::-1]


def test_the_end_pushes_the_finished_checkpoint_once(train, argv, here, tmp_path):
    assert train(argv) == 0
    first, end, pin = titles(here)
    assert (first, pin.split(" to ")[0]) == ("initial commit", "Pin the card's examples")
    assert end.startswith("Trained for ")
    assert "epochs: NDCG@3 0." in end
    output = tmp_path / "runs" / "films"
    assert here.files(REPO)["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert not any(path.startswith(("local", "checkpoints")) for path in here.files(REPO))
    assert load_checkpoint(here.download(REPO, tmp_path / "arrived")).users is None
    assert [path.name for path in output.parent.iterdir()] == ["films"]


def test_every_save_is_pushed_to_main_the_end_last_and_no_weight_changes(
    train, argv, here, tmp_path
):
    assert train([*argv, *EVERY_EPOCH, "--hub_strategy", "every_save"]) == 0
    found = titles(here)
    states = [title for title in found if title.startswith("Step ")]
    assert 1 <= len(states) <= 3
    assert all("epoch" in title and "NDCG@3 0." in title for title in states)
    assert found[-2].startswith("Trained for ")
    commits = here.repositories[REPO].history("main")
    needed = {"model.safetensors", "catalogue.safetensors", "vocabularies.safetensors", "README.md"}
    assert all(commit.files.keys() >= needed for commit in commits[:-1])
    card = here.files(REPO)["README.md"].decode()
    assert "still being trained" not in card
    assert card.count("## How to use") == 1
    assert f'"{commits[1].oid}"' in card
    assert not (tmp_path / "runs" / "films.to-push").exists()
    plain = str(tmp_path / "runs" / "plain")
    assert train([*argv, "--push_to_hub", "false", "--output_dir", plain]) == 0
    weights = here.files(REPO)["model.safetensors"], Path(plain, "model.safetensors").read_bytes()
    pushed, kept = map(load, weights)
    assert pushed.keys() == kept.keys()
    assert all((pushed[name] == kept[name]).all() for name in pushed)


def test_states_go_to_their_branch_can_be_loaded_and_resumed(train, argv, here, tmp_path, caplog):
    flags = [*argv, *EVERY_EPOCH]
    pushed = ["--hub_strategy", "checkpoint", "--hub_training_state", "--max_shard_size", "10KB"]
    assert train([*flags, *pushed]) == 0
    assert [title.split(" ")[0] for title in titles(here)] == ["initial", "Trained", "Pin"]
    last = titles(here, "checkpoints")[-1]
    assert last.startswith("Step 3, epoch 3: NDCG@3 0.")
    state = here.download(REPO, tmp_path / "state", "checkpoints")
    loaded = load_checkpoint(state)
    assert len(loaded.catalogue) == 14
    assert "still being trained" in loaded.card
    assert any("-of-" in path.name for path in state.iterdir())
    folder = state / "last-checkpoint"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "best.safetensors", "training_state.json",
        "preprocessor_config.json", "vocabularies.safetensors",
    }  # fmt: skip
    resumed = ["--resume_from_checkpoint", str(folder), "--output_dir", str(tmp_path / "again")]
    with caplog.at_level(logging.INFO):
        assert train([*flags, *resumed, "--push_to_hub", "false"]) == 0
    assert f"resumed from {folder} after step 3" in caplog.text
    assert not any("last-checkpoint" in path for path in here.files(REPO))


def test_a_hub_that_fails_for_a_while_gets_everything_in_the_end(train, argv, here, quick, caplog):
    here.faults.add(r"/repos/create", status=503, times=2)
    here.faults.add(r"/commit/", status=500, times=3)
    here.faults.add(r"/commit/", lose_answer=True)
    here.faults.add(r"/commit/", status=429, retry_after=1)
    assert train(argv) == 0
    assert "next try in" in caplog.text
    assert "NOT ON THE HUB" not in caplog.text
    assert here.files(REPO).keys() >= {"model.safetensors", "catalogue.safetensors"}
    assert titles(here)[-1].startswith("Pin")


def test_a_hub_that_is_down_stops_no_training_and_the_log_says_how_to_push_later(
    train, argv, here, quick, caplog, tmp_path, capsys
):
    here.faults.add(r"/api/", times=10**6, status=500)
    flags = [*EVERY_EPOCH, "--hub_strategy", "checkpoint", "--hub_patience", "1", "--hub_private"]
    assert train([*argv, *flags, "--hub_catalogue", "false"]) == 0
    assert load_checkpoint(tmp_path / "runs" / "films")
    assert not here.repositories
    assert caplog.text.count("NOT ON THE HUB") == 2
    here.faults.clear()
    commands = [line.strip() for line in caplog.text.splitlines() if "-m ftmamba push" in line]
    assert len(commands) == 2
    for command in commands:
        assert command_line(shlex.split(command)[3:]) == 0
    assert here.repositories[REPO].private
    assert titles(here)[1].startswith("Trained for")
    # The branch begins where `main` is: after the other command, with a card to be pinned anew.
    (state,) = [title for title in titles(here, "checkpoints") if title.startswith("Step")]
    assert state.startswith("Step 3, epoch 3: NDCG@3 0.")
    for commit in here.repositories[REPO].commits.values():
        assert "catalogue.safetensors" not in commit.files
    assert "model.safetensors" in capsys.readouterr().out


def test_training_that_breaks_off_pushes_what_it_saved_last(
    train, argv, here, quick, monkeypatch, capsys
):
    real = TrainingLoop._train_epoch

    def break_off(self, report):
        if self.progress.epoch == 2:
            raise ValueError("the loss of step 7 is not finite")
        real(self, report)

    monkeypatch.setattr(TrainingLoop, "_train_epoch", break_off)
    here.faults.add(r"/commit/", status=500, times=2)
    assert train([*argv, *EVERY_EPOCH, "--hub_strategy", "every_save"]) == 2
    assert "the loss of step 7 is not finite" in capsys.readouterr().err
    assert "epoch 2: NDCG@3" in titles(here)[-1]
    assert "still being trained" in here.files(REPO)["README.md"].decode()


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize(
    ("token", "status"),
    [("hf_nobodyknowsthistokenatall", 401), (READ_TOKEN, 403), (STRANGER_TOKEN, 403)],
)
def test_a_token_that_may_not_write_is_refused_before_training(
    train, argv, here, capsys, monkeypatch, tmp_path, token, status, is_there
):
    if is_there:
        here.api().create_repo(REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("ftmamba.run.read_tables", None)
    assert train(argv) == 2
    said = capsys.readouterr().err
    assert "cannot push to 'tester/films': " in said
    assert str(status if is_there or status == 401 else 404) in said
    assert "token" in said
    assert not (tmp_path / "runs").exists()
    assert len(here.repositories) == is_there


def test_without_any_token_nothing_is_trained(train, argv, here, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert train(argv) == 2
    assert "push_to_hub needs an access token that may write" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["films", "me/films/more"])
def test_a_wrong_name_is_refused_before_training(train, argv, here, capsys, tmp_path, name):
    assert train([*argv, "--hub_model_id", name]) == 2
    assert f"must be 'user/name', got '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


PHASES = {
    "reading tables": "ftmamba.run.read_tables",
    "splitting": "ftmamba.run.split_tables",
    "encoding": "ftmamba.training.run.encode",
    "embedding the catalogue": "ftmamba.results.embed_catalogue",
    "saving": "modeling_ftmamba.pipeline_ftmamba.add_pipeline",
    "evaluating": "ftmamba.comparison.evaluate",
    "tuning baselines": "ftmamba.comparison.tune",
    "making the card": "ftmamba.run.with_card",
    "pushing": "hub_cards.training_push.TrainingPush.finish",
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [(name, signal.SIGINT if row % 2 else signal.SIGTERM) for row, name in enumerate(PHASES)],
)
def test_a_signal_outside_training_is_one_line_and_leaves_nothing_half_written(
    train, argv, here, capsys, tmp_path, monkeypatch, phase, number
):
    def interrupted(*_, **__):
        signal.raise_signal(number)
        pytest.fail("the signal did not come")

    monkeypatch.setattr(PHASES[phase], interrupted)
    flags = ["--num_epochs", "1", "--baselines", "item-knn", "--tune_baselines", "true"]
    flags += [] if phase == "pushing" else ["--push_to_hub", "false"]
    assert train([*argv, *flags]) == 128 + number
    said = capsys.readouterr().err.splitlines()
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert said[-1] == f"train_accelerate.py: stopped by {name}"
    assert not any("Traceback" in line for line in said)
    assert [path.name for path in tmp_path.rglob(".*") if path.name != ".cache"] == []
    output = tmp_path / "runs" / "films"
    if list(PHASES).index(phase) > list(PHASES).index("saving"):
        assert load_checkpoint(output).users is not None
    else:
        assert not output.exists() or not (output / "config.json").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
