"""Laws of the training loop."""

from dataclasses import fields, replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ftmamba.identity import FREE_TO_CHANGE
from ftmamba.recipe import TrainingRecipe
from ftmamba.training import catalogue_embeddings, fit, loop, user_embeddings
from ftmamba.training.checkpoints import CheckpointStore
from ftmamba.training.optimizer import decay_groups, learning_rate_at, make_optimizer

from .conftest import forget_accelerate
from .toy import training_recipe

LOSSES = ["in_batch", "full_softmax", "bce", "mse"]


@pytest.fixture
def run(toy, accelerator, tmp_path):
    """Train a fresh model and return it with the result."""

    def train(data, recipe, *, validate=None, name="run", **fields):
        model = toy.model(data, **fields)
        result = fit(
            model, data, recipe, accelerator,
            validate=validate, output_dir=tmp_path / name, seed=5,
        )  # fmt: skip
        return model, result

    return train


def same_weights(first, second):
    pairs = list(zip(first.state_dict().items(), second.state_dict().values(), strict=True))
    assert len(pairs) > 20
    return all(torch.equal(tensor, other) for (_, tensor), other in pairs)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_withheld_diagonal_is_ranked_first(loss, data, run, toy):
    recipe = training_recipe(
        loss=loss, batch_size=48, num_epochs=40, learning_rate=1e-2, mask_known_positives=True
    )
    model, result = run(data, recipe)
    scores = (
        user_embeddings(model, data, torch.arange(toy.N_USERS))
        @ catalogue_embeddings(model, data, None).T
    )
    train = toy.checkerboard()
    scores[train.user_ids, train.item_ids] = -torch.inf
    assert torch.equal(scores.argmax(1), torch.arange(toy.N_USERS))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.best_epoch == 40


@pytest.mark.parametrize("loss", LOSSES)
def test_tensor_names_tell_their_shapes(loss, either_data, run, checked_shapes):
    recipe = training_recipe(loss=loss, batch_size=32, num_epochs=1, mask_known_positives=True)
    with checked_shapes("ftmamba"):
        run(either_data, recipe)


@pytest.mark.parametrize("loss", ["in_batch", "bce"])
def test_resuming_at_an_epoch_equals_an_uninterrupted_run(loss, either_data, run):
    recipe = training_recipe(loss=loss, batch_size=32, num_epochs=2, checkpointing_steps="epoch")
    scores = iter([0.3, 0.2, 0.2])
    options = {"validate": lambda _: next(scores), "token_dropout": 0.3}
    straight, expected = run(either_data, recipe, name="straight", **options)
    scores = iter([0.3, 0.2])
    run(either_data, replace(recipe, stop_after_epochs=1), name="cut", **options)
    again = replace(recipe, resume_from_checkpoint="latest")
    resumed, result = run(either_data, again, name="cut", **options)
    assert same_weights(straight, resumed)
    assert [e["loss"] for e in result.history] == [e["loss"] for e in expected.history]
    assert (result.best_epoch, result.best_score) == (1, 0.3)


def test_resuming_in_the_middle_of_an_epoch_equals_an_uninterrupted_run(data, run, monkeypatch):
    recipe = training_recipe(
        batch_size=16, num_epochs=3, gradient_accumulation_steps=2, checkpointing_steps=3
    )
    straight, expected = run(data, recipe, name="straight", token_dropout=0.3)
    save = CheckpointStore.save

    def save_and_die(store, *args, **options):
        if options["progress"].step == 6:
            raise KeyboardInterrupt
        return save(store, *args, **options)

    monkeypatch.setattr(CheckpointStore, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(data, recipe, name="cut", token_dropout=0.3)
    monkeypatch.undo()
    again = replace(recipe, resume_from_checkpoint="latest")
    resumed, result = run(data, again, name="cut", token_dropout=0.3)
    assert same_weights(straight, resumed)
    assert [e["loss"] for e in result.history] == [e["loss"] for e in expected.history]


def test_training_twice_gives_the_same_bits_and_another_seed_others(
    data, toy, accelerator, tmp_path
):
    models = [toy.model(data, token_dropout=0.3) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(
            model, data, training_recipe(batch_size=32, num_epochs=1), accelerator,
            validate=None, output_dir=tmp_path, seed=seed,
        )  # fmt: skip
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_a_validation_that_draws_numbers_changes_nothing(data, run):
    recipe = training_recipe(batch_size=32, num_epochs=2)
    quiet, _ = run(data, recipe, token_dropout=0.3)
    noisy, _ = run(data, recipe, token_dropout=0.3, validate=lambda _: torch.rand(9).sum() * 0)
    last, _ = run(data, replace(recipe, stop_after_epochs=1), token_dropout=0.3)
    # Every score is 0, so the first epoch's weights are the best.
    assert same_weights(noisy, last)
    assert not same_weights(noisy, quiet)


def test_the_best_validated_epoch_is_kept_and_patience_ends_the_run(data, run):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    recipe = training_recipe(batch_size=32, num_epochs=5, early_stopping_patience=2)
    model, result = run(data, recipe, validate=lambda _: next(scores))
    assert (result.best_epoch, result.best_score) == (2, 0.5)
    assert [e["score"] for e in result.history] == [0.1, 0.5, 0.4, 0.5]
    best, _ = run(data, replace(recipe, stop_after_epochs=2))
    assert same_weights(model, best)


def test_validation_is_due_every_so_many_epochs_and_at_the_end(data, run):
    seen = []
    recipe = training_recipe(batch_size=48, num_epochs=5, evaluate_every=2)
    _, result = run(data, recipe, validate=lambda _: seen.append(1) or float(len(seen)))
    assert [e["epoch"] for e in result.history if "score" in e] == [2, 4, 5]


def test_accumulated_pair_losses_equal_the_big_batch_in_batch_negatives_do_not_grow(
    data, toy, accelerator, tmp_path
):
    """With mse every batch's loss is a mean over its own pairs, so two halves make the whole."""

    def first_step(loss, batch_size, n_windows):
        recipe = training_recipe(
            loss=loss, batch_size=batch_size, num_epochs=1, schedule="constant",
            gradient_accumulation_steps=n_windows, warmup_fraction=0.0,
        )  # fmt: skip
        model = toy.model(data)
        one_step = toy.encoded(tmp_path / "data")
        fit(model, one_step, recipe, accelerator, validate=None, output_dir=tmp_path, seed=5)
        return model

    def largest_difference(loss):
        whole, halves = first_step(loss, 48, 1), first_step(loss, 24, 2)
        pairs = zip(whole.parameters(), halves.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    assert largest_difference("mse") < 2e-4
    assert largest_difference("in_batch") > 1e-3


# Another value of each option that shapes the steps.
OTHER = {
    "batch_size": 16, "num_epochs": 2, "stop_after_epochs": 1, "learning_rate": 2e-3,
    "schedule": "linear", "warmup_fraction": 0.5, "weight_decay": 0.5, "max_grad_norm": 0.01,
    "embedding_weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.9,
    "gradient_accumulation_steps": 2,
}  # fmt: skip


def test_every_option_of_training_changes_the_weights(data, run):
    tested_elsewhere = {"loss", "sequences", "batch_order", "mixed_precision", "history_dropout"}
    shaping = {f.name for f in fields(TrainingRecipe)} - set(FREE_TO_CHANGE) - tested_elsewhere
    assert {*OTHER, *FREE_TO_CHANGE} >= shaping
    recipe = training_recipe(batch_size=32, num_epochs=3)
    usual, _ = run(data, recipe)
    for option, other in OTHER.items():
        changed, _ = run(data, replace(recipe, **{option: other}))
        assert not same_weights(usual, changed), option


def test_no_decay_on_tokenizer_norms_biases_and_the_state_space(data, toy):
    groups = decay_groups(toy.model(data).named_parameters())
    names = {kind: set(group) for kind, group in groups.items()}
    assert names["tables"] == {
        f"{tower}_tower.tokenizer.kinds.category_ids.table.weight" for tower in ("user", "item")
    }
    layer = "user_tower.layers.0"
    for name in (
        "log_temperature", f"{layer}.mixer.A_log", f"{layer}.mixer.D", f"{layer}.mixer_norm.weight",
        f"{layer}.mixer.dt_proj.bias", "user_tower.tokenizer.cls", "user_tower.norm.weight",
        "user_tower.tokenizer.kinds.numeric.embedding.weight",
    ):  # fmt: skip
        assert name in names["undecayed"]
    for name in (f"{layer}.mixer.in_proj.weight", f"{layer}.mixer.conv1d.weight"):
        assert name in names["decayed"]
    n_parameters = sum(1 for _ in toy.model(data).named_parameters())
    assert sum(map(len, names.values())) == n_parameters
    recipe = training_recipe(weight_decay=0.3, embedding_weight_decay=0.1)
    decays = {g["weight_decay"] for g in make_optimizer(toy.model(data), recipe).param_groups}
    assert decays == {0.3, 0.1, 0.0}


def test_the_schedule_by_hand():
    recipe = training_recipe(learning_rate=0.8, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 10, recipe) for step in range(10)]
    assert rates[:3] == [0.4, 0.8, 0.8]
    assert rates[6] == pytest.approx(0.4)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert learning_rate_at(10, 10, recipe) == pytest.approx(0)
    linear = replace(recipe, schedule="linear")
    assert learning_rate_at(4, 10, linear) == pytest.approx(0.6)
    assert learning_rate_at(9, 10, replace(recipe, schedule="constant")) == 0.8


def test_infinite_features_are_refused_and_the_rows_named(data, run):
    data.users["numeric"][[3, 7]] = torch.inf
    with pytest.raises(ValueError, match=r"table 'users' has infinite values .* rows 3, 7;"):
        run(data, training_recipe(batch_size=32, num_epochs=1))


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(data, run, toy):
    # Two users whose number overflows inside the tower; each has several interactions.
    data.users["numeric"][[3, 7]] = 3e38
    with pytest.raises(ValueError, match=r"training stopped at step 1: .* not finite") as error:
        run(data, training_recipe(batch_size=160, num_epochs=1))
    assert "the embeddings of user rows 3, 7 are not finite" in str(error.value)


def test_checkpoints_are_pruned_and_hold_no_pickle(data, run, tmp_path):
    recipe = training_recipe(
        batch_size=32, num_epochs=4, checkpointing_steps="epoch", checkpoints_total_limit=2
    )
    run(data, recipe, validate=lambda _: 1.0)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000012", "step-00000016"]
    assert sorted(path.name for path in folders[0].iterdir()) == [
        "best.safetensors", "model.safetensors", "optimizer.safetensors",
        "preprocessor_config.json", "training_state.json",
    ]  # fmt: skip
    assert len(load_file(folders[0] / "optimizer.safetensors")) > 60


def test_an_interrupted_save_leaves_the_earlier_checkpoint(data, run, tmp_path, monkeypatch):
    recipe = training_recipe(batch_size=32, num_epochs=2, checkpointing_steps="epoch")
    run(data, replace(recipe, stop_after_epochs=1))

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftmamba.training.checkpoints.save_file", no_room)
    with pytest.raises(OSError, match="no room left on the disk"):
        run(data, replace(recipe, resume_from_checkpoint="latest"))
    folders = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000004"]


def test_a_checkpoint_of_another_run_is_refused(data, run):
    recipe = training_recipe(batch_size=32, num_epochs=1, checkpointing_steps="epoch")
    run(data, recipe)
    again = replace(recipe, resume_from_checkpoint="latest", learning_rate=5e-4, num_epochs=3)
    message = r"\.learning_rate was 0.001 and is 0.0005; training.num_epochs was 1 and is 3"
    with pytest.raises(ValueError, match=message):
        run(data, again)


def test_a_damaged_or_unknown_checkpoint_is_named(data, run, tmp_path):
    recipe = training_recipe(batch_size=32, num_epochs=1, checkpointing_steps="epoch")
    run(data, recipe)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    with pytest.raises(FileNotFoundError, match=r"holds no training state.*step-00000004"):
        run(data, replace(recipe, resume_from_checkpoint=str(tmp_path)))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    again = replace(recipe, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged or cut short"):
        run(data, again)
    state = folder / "training_state.json"
    state.write_text(state.read_text().replace('"format_version": 3', '"format_version": 9'))
    with pytest.raises(ValueError, match="has format_version 9"):
        run(data, again)
    state.write_text("{")
    with pytest.raises(ValueError, match=r"training_state.json' is damaged"):
        run(data, again)


def test_latest_without_a_checkpoint_starts_afresh(data, run):
    recipe = training_recipe(batch_size=32, num_epochs=1, resume_from_checkpoint="latest")
    _, result = run(data, recipe)
    assert len(result.history) == 1


@pytest.fixture
def bf16_accelerator():
    """Accelerate for `mixed_precision: bf16`, which a process sets once."""
    yield Accelerator(cpu=True, mixed_precision="bf16")
    forget_accelerate()


def bf16_run(data, toy, accelerator, folder, **options):
    recipe = training_recipe(batch_size=32, num_epochs=6, learning_rate=1e-2, **options)
    model = toy.model(data)
    result = fit(model, data, recipe, accelerator, validate=None, output_dir=folder, seed=0)
    return model, result


@pytest.mark.parametrize("seconds", [(1.0, 1.0), (2.0, 1.0)])
def test_bf16_is_float32_where_that_is_faster(
    data, toy, tmp_path, bf16_accelerator, monkeypatch, seconds
):
    types = []
    monkeypatch.setattr(loop, "seconds_of_products", lambda *_: seconds)
    head = toy.model(data).user_tower.head
    kind = type(next(one for one in head.modules() if isinstance(one, torch.nn.Linear)))
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda *args: types.append((out := forward(*args)).dtype) or out
    )
    model, result = bf16_run(data, toy, bf16_accelerator, tmp_path)
    assert torch.bfloat16 in types if seconds == (1.0, 1.0) else set(types) == {torch.float32}
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert "forward" not in vars(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_resumed_run_computes_in_the_type_that_it_began_with(
    data, toy, tmp_path, bf16_accelerator, monkeypatch
):
    def run(name, *seconds, **options):
        monkeypatch.setattr(loop, "seconds_of_products", lambda *_: seconds)
        folder = tmp_path / name
        options = {"checkpointing_steps": "epoch", **options}
        return bf16_run(data, toy, bf16_accelerator, folder, **options)[0]

    straight, narrow = run("straight", 2, 1), run("narrow", 1, 2)
    run("cut", 2, 1, stop_after_epochs=3)
    resumed = run("cut", 1, 2, resume_from_checkpoint="latest")
    assert same_weights(straight, resumed)
    assert not same_weights(straight, narrow)


def test_accelerates_own_accumulation_is_refused(data, toy, tmp_path, accelerator):
    accelerator.gradient_accumulation_steps = 4
    with pytest.raises(ValueError, match="set it in the recipe's training section"):
        fit(
            toy.model(data), data, training_recipe(), accelerator,
            validate=None, output_dir=tmp_path,
        )  # fmt: skip
