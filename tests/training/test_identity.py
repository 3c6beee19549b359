"""A run knows what it is: what resumes it, what its folder keeps, what signals leave."""

import copy
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ftmamba.atomic import locked
from ftmamba.data.interactions import concatenate
from ftmamba.data.schema import Schema
from ftmamba.evaluation import make_split
from ftmamba.recipe import TrainingRecipe, recipe_from_dict
from ftmamba.training import loop
from ftmamba.training.checkpoints import CheckpointStore, read_state
from ftmamba.training.run import check_before_training, folder_of_run, split_tables, train
from tests.made_up_tables import clusters

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 2, "projection_size": 8}


@pytest.fixture(scope="module")
def tables():
    return clusters(20, 12, n_events=160)


@pytest.fixture
def values(tmp_path):
    """A recipe of two epochs of three steps, as plain values."""
    return {
        "data": {"cache_dir": str(tmp_path / "cache")},
        "split": {"kind": "global-time", "cut": 0.8, "test_fraction": 0.2},
        "model": {"preset": "ft-mamba-small", "overrides": dict(SMALL)},
        "training": {"batch_size": 32, "num_epochs": 2, "checkpointing_steps": "epoch"},
        "evaluation": {"k": [3], "selection_metric": "NDCG@3", "refit": False},
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def run(accelerator, values, tables):
    """Train by the recipe, some of its options changed by dotted names."""

    def run(given=tables, **options):
        recipe = recipe_of(values, **options)
        return train(recipe, given, split_tables(given, recipe), accelerator)

    return run


def recipe_of(values, **options):
    changed = copy.deepcopy(values)
    for name, value in options.items():
        *path, last = name.split("__")
        section = changed
        for one in path:
            section = section.setdefault(one, {})
        section[last] = value
    return recipe_from_dict(changed)


RESUME = {"training__resume_from_checkpoint": "latest"}
AS_THEY_ARE = {**RESUME, "training__allow_changed": ["data"]}


def states(values):
    return [path.name for path in CheckpointStore(Path(values["output_dir"], "checkpoints")).list()]


def same_weights(first, second):
    pairs = list(zip(first.state_dict().items(), second.state_dict().values(), strict=True))
    assert len(pairs) > 20
    return all(torch.equal(tensor, other) for (_, tensor), other in pairs)


def with_interactions(tables, **columns):
    return replace(tables, interactions=replace(tables.interactions, **columns))


def longer(tables, n_rows=40):
    """Add events of the same users and items, later than all others."""
    events = tables.interactions
    later = replace(events.select(np.arange(n_rows)), times=events.times[:n_rows] + 10**6)
    return replace(tables, interactions=concatenate(events, later))


def with_one_item_more(tables):
    items = pa.concat_tables([tables.items, tables.items.slice(0, 1)])
    keys = pa.array([*tables.items.column("item_id").to_pylist(), "new"])
    items = items.set_column(0, "item_id", keys)
    more = replace(tables.interactions, n_items=items.num_rows)
    return replace(tables, items=items, interactions=more)


def with_columns_reversed(tables):
    schema = tables.schema.to_dict()
    columns = schema["items"]["columns"]
    schema["items"]["columns"] = dict(reversed(columns.items()))
    return replace(tables, schema=Schema.from_dict(schema))


def with_other_prices(tables):
    return replace(tables, items=tables.items.set_column(2, "price", pa.array(np.arange(12.0))))


OTHERS = {
    "items": (
        lambda t: with_interactions(t, item_ids=t.interactions.item_ids[::-1].copy()), {},
        "table 'interactions' has other values of item",
    ),
    "times": (
        lambda t: with_interactions(t, times=t.interactions.times + 1), {},
        "table 'interactions' has other values of time",
    ),
    "rows": (longer, {}, "table 'interactions' had 160 rows and has 200"),
    "item": (with_one_item_more, {}, "table 'items' had 12 rows and has 13"),
    "prices": (with_other_prices, {}, "table 'items' has other values of price"),
    "order of columns": (with_columns_reversed, {}, r"schema.items.columns was \['price'"),
    "dropout": (
        None, {"model__overrides": {**SMALL, "token_dropout": 0.1}},
        "model.token_dropout was absent and is 0.1",
    ),
    "epsilon": (
        None, {"model__overrides": {**SMALL, "layer_norm_eps": 1e-3}},
        "model.layer_norm_eps was absent and is 0.001",
    ),
    "width": (
        None, {"model__overrides": {**SMALL, "hidden_size": 16}},
        "model.hidden_size was 8 and is 16",
    ),
    "split": (None, {"split__cut": 0.7}, "split.cut was 0.8 and is 0.7"),
    "metric": (
        None, {"evaluation__selection_metric": "HR@3"},
        "evaluation.selection_metric was 'NDCG@3' and is 'HR@3'",
    ),
    "seed": (None, {"seed": 7}, "training.seed was 42 and is 7"),
}  # fmt: skip


def test_another_run_is_not_resumed_and_its_folder_not_used_and_the_message_says_why(
    run, tables, values, monkeypatch
):
    run()
    before = states(values)
    monkeypatch.setattr("ftmamba.training.run.encode", None)
    for change, options, message in OTHERS.values():
        given = tables if change is None else change(tables)
        with pytest.raises(ValueError, match=f"is of another run.*{message}"):
            run(given, **options, **RESUME)
        with pytest.raises(ValueError, match=r"output_dir .* holds another run"):
            run(given, **options)
        assert states(values) == before


def test_code_that_differs_is_named_and_can_be_allowed(run, monkeypatch):
    run(training__stop_after_epochs=1)
    monkeypatch.setattr("ftmamba.identity._source_hash", lambda: "other")
    with pytest.raises(ValueError, match=r"code.source was '\w+' and is 'other'.*_changed code"):
        run(**RESUME)
    second = run(**RESUME, training__allow_changed=["code"])
    assert len(second.result.history) == 2


def test_added_rows_are_trained_on_for_more_epochs_if_they_are_allowed(run, tables, values):
    first = run()
    grown = longer(tables)
    with pytest.raises(ValueError, match="; --allow_changed data goes on with the data as they"):
        run(grown, **RESUME)
    with pytest.raises(ValueError, match="has trained all 2 epochs; give a larger num_epochs"):
        run(grown, **AS_THEY_ARE)
    with pytest.raises(ValueError, match="has other values of item"):
        run(OTHERS["items"][0](tables), **AS_THEY_ARE)
    cut = run(grown, **AS_THEY_ARE, training__num_epochs=5, training__stop_after_epochs=3)
    assert [one["epoch"] for one in cut.result.history] == [1, 2, 3]
    assert first.result.history == cut.result.history[:2]
    assert cut.result.best_epoch == 3
    # The extractor is the one that the weights belong to, then and for good.
    assert cut.data.extractor.to_dict() == first.data.extractor.to_dict()
    resumed = run(grown, **RESUME, training__num_epochs=5)
    assert resumed.data.extractor.to_dict() == first.data.extractor.to_dict()
    assert [one["epoch"] for one in resumed.result.history] == [1, 2, 3, 4, 5]
    assert resumed.result.history[-1]["learning_rate"] < 1e-4


def test_a_refused_folder_is_free_with_overwrite_and_its_states_are_kept(run, values, caplog):
    caplog.set_level("INFO")
    run()
    kept = states(values)
    run(seed=7, overwrite_output_dir=True, training__num_epochs=1)
    folder = Path(values["output_dir"])
    assert states(values) == ["step-00000003"]
    assert read_state(folder / "checkpoints/step-00000003")["identity"]["training"]["seed"] == 7
    assert sorted(path.name for path in (folder / "earlier-1/checkpoints").iterdir()) == kept
    assert "are kept in" in caplog.text
    # With `latest` too what is of another run is not resumed, but set aside.
    run(seed=8, overwrite_output_dir=True, **RESUME)
    assert (folder / "earlier-2/checkpoints/step-00000003").is_dir()
    assert states(values) == ["step-00000003", "step-00000006"]


def test_a_folder_with_results_of_another_run_or_of_none_is_refused(run, values):
    folder = Path(values["output_dir"])
    folder.mkdir()
    for content, message in (("{}", "does not say of which run"), ('{"identity": {}}', "data")):
        (folder / "all_results.json").write_text(content)
        with pytest.raises(ValueError, match=f"holds another run.*{message}"):
            run()
    run(overwrite_output_dir=True)


def test_the_same_run_may_be_repeated_and_never_deletes_its_own_newest_state(run, values):
    run(training__checkpoints_total_limit=0)
    first = Path(values["output_dir"]) / "checkpoints" / "step-00000003"
    options = {"training__checkpoints_total_limit": 1, "training__stop_after_epochs": 1}
    run(**options)
    assert states(values) == ["step-00000003", "step-00000006"]
    run(**options, training__resume_from_checkpoint=str(first))
    assert states(values) == ["step-00000003", "step-00000006"]


def test_a_kill_between_two_renames_leaves_a_state_that_latest_finds(
    run, values, accelerator, monkeypatch
):
    straight = run()
    folder = Path(values["output_dir"])
    newest = folder / "checkpoints" / "step-00000006"
    newest.rename(newest.with_name(".step-00000006.previous"))
    monkeypatch.setattr("ftmamba.training.loop.TrainingLoop._train_epoch", None)
    assert same_weights(straight.model, run(**RESUME).model)
    # The whole folder, while the finished checkpoint took its place.
    folder.rename(folder.with_name(".run.previous"))
    with folder_of_run(folder, accelerator):
        assert same_weights(straight.model, run(**RESUME).model)
    folder.rename(folder.with_name(".run.previous"))
    folder.mkdir()
    (folder / "notes.txt").write_text("of the new one")
    with folder_of_run(folder, accelerator):
        assert same_weights(straight.model, run(**RESUME).model)
    assert (folder / "notes.txt").read_text() == "of the new one"


def test_two_runs_in_one_folder_the_second_is_refused(tmp_path, accelerator):
    folder = tmp_path / "run"
    with folder_of_run(folder, accelerator):
        with (
            pytest.raises(ValueError, match=r"output_dir: another run is writing to '.*run'"),
            folder_of_run(folder, accelerator),
        ):
            pass
        with locked(tmp_path / "other"):
            pass
    with folder_of_run(folder, accelerator):
        assert list(tmp_path.iterdir()) != [folder]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_take_the_checkpoint_is_refused_first(tmp_path, accelerator):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "setup.py").write_text("mine")
    for name, message in (("file", "is a file"), ("project", "could replace setup.py")):
        with (
            pytest.raises(ValueError, match=message),
            folder_of_run(tmp_path / name, accelerator),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("share", [None, 1.0])
def test_a_refit_resumes_like_any_training(run, values, monkeypatch, share):
    options = {"evaluation__refit": True, "evaluation__refit_share": share,
               "training__checkpointing_steps": 3}  # fmt: skip
    straight = run(**options)
    values["output_dir"] += "-cut"
    save, refitted = CheckpointStore.save, []

    def save_and_die(store, *args, **given):
        folder = save(store, *args, **given)
        if store.folder.parent.name == "refit":
            raise MemoryError
        return folder

    monkeypatch.setattr(CheckpointStore, "save", save_and_die)
    with pytest.raises(MemoryError):
        run(**options)
    monkeypatch.setattr(CheckpointStore, "save", save)
    train_epoch = loop.TrainingLoop._train_epoch

    def noted(self, bar):
        refitted.append((self.checkpoints.folder.parent.name, self.progress.step))
        train_epoch(self, bar)

    monkeypatch.setattr(loop.TrainingLoop, "_train_epoch", noted)
    resumed = run(**options, **RESUME)
    assert refitted == [("refit", 3)]
    assert same_weights(straight.model, resumed.model)


def test_a_share_of_a_refit_goes_on_from_the_trained_weights_at_half_the_rate(
    run, values, monkeypatch
):
    before = run(evaluation__refit=False)
    values["output_dir"] += "-more"
    train_epoch, started = loop.TrainingLoop._train_epoch, []

    def noted(self, bar):
        if self.checkpoints.folder.parent.name == "refit":
            weights = {name: one.clone() for name, one in self.base.state_dict().items()}
            started.append((weights, self.recipe))
        train_epoch(self, bar)

    monkeypatch.setattr(loop.TrainingLoop, "_train_epoch", noted)
    after = run(evaluation__refit=True, evaluation__refit_share=0.1)
    ((weights, recipe),) = started
    assert all(torch.equal(weights[name], one) for name, one in before.model.state_dict().items())
    assert (recipe.num_epochs, recipe.learning_rate) == (1, TrainingRecipe().learning_rate / 2)
    assert not same_weights(before.model, after.model)
    assert after.data.item_counts.sum() > before.data.item_counts.sum()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("refit", [False, True])
def test_a_signal_saves_a_state_that_resumes_exactly(
    run, values, monkeypatch, caplog, number, refit
):
    options = {"evaluation__refit": refit, "training__checkpointing_steps": ""}
    straight = run(**options)
    values["output_dir"] += "-cut"
    step, handlers = loop.TrainingLoop._step, signal.getsignal(number)

    def signalled(self, window):
        is_refit = self.checkpoints.folder.parent.name == "refit"
        if (is_refit, self.progress.step) == (refit, 2):
            os.kill(os.getpid(), number)
        return step(self, window)

    monkeypatch.setattr(loop.TrainingLoop, "_step", signalled)
    with pytest.raises(loop.TrainingStoppedError) as stopped:
        run(**options)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert str(stopped.value).startswith(f"stopped by {name} after step 3; the state is saved in")
    assert "--resume_from_checkpoint latest" in str(stopped.value)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is handlers
    monkeypatch.setattr(loop.TrainingLoop, "_step", step)
    assert same_weights(straight.model, run(**options, **RESUME).model)


def test_a_signal_that_the_process_ignores_stays_ignored():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loop.signals_held_back() as came:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_metrics_examples_and_lengths_are_checked_with_the_tables(values, tables):
    for options, message in (
        ({"evaluation__selection_metric": "NDGC@3"}, "did you mean 'NDCG@3'"),
        ({"evaluation__selection_metric": "NDCG@10"}, r"'NDCG@10' is not evaluated"),
        ({"evaluation__k": [3, 13]}, "k=13 is larger than the catalogue of 12 items"),
        ({"examples__user_key": "u99"}, "table 'users' has no key 'u99'"),
        ({"examples__record": {"agee": 3}}, "no column 'agee'; did you mean 'age'"),
        ({"examples__history": ["i1"]}, "examples.history needs a column of kind 'history'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_before_training(recipe_of(values, **options), tables)
    check_before_training(recipe_of(values, examples__record={"age": 3}), tables)


def test_an_identity_is_the_same_after_json(run, values, tables):
    trained = run()
    assert json.loads(json.dumps(trained.identity)) == trained.identity
    assert make_split("random", {}).split(tables.interactions)
