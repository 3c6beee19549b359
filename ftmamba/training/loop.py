"""The training loop: the one way in which every model here is trained."""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ftmamba.data.batches import make_batches
from ftmamba.data.encoded import EncodedData
from ftmamba.data.read_ahead import pinned, read_ahead
from ftmamba.identity import Identity, training_identity
from ftmamba.kernels.softmax import seconds_of_products
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.checkpoints import (
    CHECKPOINTS,
    CheckpointStore,
    OnCheckpoint,
    Progress,
    TrainingCheckpoint,
    check_same_run,
    load_weights,
    read_best,
    read_state,
)
from ftmamba.training.objective import Objective, Prepared, shown
from ftmamba.training.optimizer import learning_rate_at, make_optimizer, seed_step
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

logger = logging.getLogger(__name__)
Validate = Callable[[FTMambaTwoTowerModel], float]

POSITIONS_OF_A_SEQUENCE = 1000
"""Assumed where the type of the products is chosen."""

SLOWER = 1.05
"""Float32 is chosen where bfloat16 takes so many times as long; less than that is noise."""


@dataclass(frozen=True)
class FitResult:
    """The result of a training run.

    Attributes:
        best_epoch: epochs after which the validation score was best; all without validation.
        best_score: that score, None without validation.
        history: for each epoch its number, loss, learning rate, seconds and, where validated,
            score.
    """

    best_epoch: int
    best_score: float | None
    history: list[dict[str, float]]


def fit(  # noqa: PLR0913 - validation and checkpoints have a callback each
    model: FTMambaTwoTowerModel,
    data: EncodedData,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    *,
    validate: Validate | None,
    output_dir: Path,
    seed: int = 0,
    identity: Identity | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> FitResult:
    """Train a model in place; it ends with the weights of its best validated epoch.

    Args:
        model: the model, with its first weights.
        data: the encoded tables and training interactions.
        recipe: how to train.
        accelerator: one process or many, CPU or GPU.
        validate: scores the model, higher is better; called on the main process. None keeps the
            last epoch's weights.
        output_dir: `checkpoints/` goes inside.
        seed: of order, dropout and negatives.
        identity: of the run, which a checkpoint must share to be resumed; None: of its training
            alone.
        on_checkpoint: called after each training checkpoint, on the main process.

    Raises:
        ValueError: infinite features, a loss that is not finite, or a checkpoint of another run.
    """
    for table, tensors in (("users", data.users), ("items", data.items)):
        for name, values in tensors.items():
            infinite = values.isinf().flatten(1).any(1).nonzero().flatten()
            if len(infinite):
                raise ValueError(
                    f"table {table!r} has infinite values in its encoded {name!r} columns in "
                    f"{shown(infinite, 'row')}; correct them or leave them empty"
                )
    loop = TrainingLoop(
        model, data, recipe, accelerator,
        folder=output_dir / CHECKPOINTS, seed=seed, identity=identity,
    )  # fmt: skip
    loop.on_checkpoint = on_checkpoint
    try:
        loop.resume()
        loop.run(validate)
    finally:
        accelerator.free_memory()
    progress = loop.progress
    return FitResult(progress.best_epoch or progress.epoch, progress.best_score, progress.history)


class TrainingStoppedError(KeyboardInterrupt):
    """A signal ended the training, and its state is saved.

    Attributes:
        exit_code: that shells expect after the signal: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, folder: Path, step: int, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step}; the state is saved in {str(folder)!r}: go on "
            "with the same command and --resume_from_checkpoint latest"
        )
        self.exit_code = 128 + number


@contextmanager
def signals_held_back() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM are appended; the second one acts as it always did.

    Only the main thread can do so; in another one they act as always.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What the process ignores, as `nohup` and shells in the background may ask, stays ignored.
    usual = {n: handler for n, handler in usual.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def hold_back(number: int, _frame: object) -> None:
        came.append(number)
        restore()

    for number in usual:
        signal.signal(number, hold_back)
    try:
        yield came
    finally:
        restore()


class TrainingLoop:
    """The state and the steps of one run."""

    def __init__(
        self,
        model: FTMambaTwoTowerModel,
        data: EncodedData,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        *,
        folder: Path,
        seed: int,
        identity: Identity | None = None,
    ) -> None:
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps is set for Accelerate, got "
                f"{accelerator.gradient_accumulation_steps}; set it in the recipe's training "
                "section instead"
            )
        self.recipe, self.accelerator, self.seed, self.data = recipe, accelerator, seed, data
        self.on_checkpoint: OnCheckpoint | None = None
        self.base = model.to(accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.checkpoints = CheckpointStore(folder, recipe.checkpoints_total_limit)
        wanted = recipe.resume_from_checkpoint
        self.resumed = self.checkpoints.find(wanted) if wanted else None
        if wanted and self.resumed is None:
            logger.info("no checkpoint in %s yet; starting afresh", folder)
        length = POSITIONS_OF_A_SEQUENCE if recipe.sequences else 1
        all_items = recipe.loss.name in ("full_softmax", "full_mse")
        self.in_bfloat16 = choose_bfloat16(
            accelerator,
            (
                recipe.batch_size * length,
                data.n_items if all_items else recipe.batch_size,
                model.config.projection_size,
            ),
            resumed=None if self.resumed is None else read_state(self.resumed).get("in_bfloat16"),
        )
        self.batches = make_batches(
            data,
            sequences=recipe.sequences,
            batch_size=recipe.batch_size,
            seed=seed,
            rank=accelerator.process_index,
            n_ranks=accelerator.num_processes,
            batch_order=recipe.batch_order,
            history_dropout=recipe.history_dropout,
            smallest=2 if recipe.loss.name == "in_batch" else 1,
        )
        self.steps_per_epoch = -(-self.batches.n_batches // recipe.gradient_accumulation_steps)
        self.objective = Objective(self.base, data, recipe, seed=seed, in_bfloat16=self.in_bfloat16)
        # The objective around the model is what is wrapped: its forward is the loss.
        self.wrapped, self.optimizer = accelerator.prepare(
            self.objective, make_optimizer(self.base, recipe)
        )
        self.identity = identity or {
            "data": {"batches an epoch": self.batches.n_batches},
            **training_identity(recipe, seed=seed, n_processes=accelerator.num_processes),
        }
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.saved_at = (0, 0)
        self.signals: list[int] = []

    def resume(self) -> None:
        """Go on from the recipe's checkpoint, if it names one."""
        folder = self.resumed
        if folder is None:
            return
        state = read_state(folder)
        check_same_run(folder, self.identity, allowed=self.recipe.allow_changed)
        load_weights(folder, self.base, self.optimizer.optimizer)
        self.best = read_best(folder)
        self.progress = Progress(**state["progress"])
        if state["identity"]["data"] != self.identity["data"]:
            self.best = None
            self.progress.begin_on_changed_data()
            if self.progress.epoch >= self.recipe.num_epochs:
                raise ValueError(
                    f"the checkpoint {str(folder)!r} has trained all {self.progress.epoch} epochs; "
                    "give a larger num_epochs to train on the changed data"
                )
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.saved_at = (self.progress.epoch, self.progress.step)
        logger.info("resumed from %s after step %d", folder, self.progress.step)

    def step_after(self, n_epochs: int) -> int:
        """Return the number of the step that ends so many epochs."""
        progress = self.progress
        return progress.start_step + (n_epochs - progress.start_epoch) * self.steps_per_epoch

    @property
    def n_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.step_after(self.recipe.num_epochs)

    def run(self, validate: Validate | None) -> None:
        """Train to the end, an early stop included, and put the best weights in the model."""
        recipe, progress = self.recipe, self.progress
        end = min(recipe.num_epochs, recipe.stop_after_epochs or recipe.num_epochs)
        # None hides the bar where the output is no terminal; a notebook's output is none either.
        hidden = None if self.accelerator.is_main_process else True
        if hidden is None and "ipykernel" in sys.modules:
            hidden = False
        bar = tqdm(total=self.step_after(end), initial=progress.step, unit="step", disable=hidden)
        with logging_redirect_tqdm(), bar, signals_held_back() as self.signals:
            patience = recipe.early_stopping_patience or math.inf
            while progress.epoch < end and progress.n_stale < patience:
                started = time.perf_counter()
                self._train_epoch(bar)
                figures = {
                    "epoch": progress.epoch + 1,
                    "loss": self._mean_loss_sum() / self.batches.n_batches,
                    "learning_rate": learning_rate_at(progress.step - 1, self.n_steps, recipe),
                    "seconds": time.perf_counter() - started,
                }
                progress.history.append(figures)
                progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
                is_due = progress.epoch % recipe.evaluate_every == 0 or progress.epoch == end
                if validate is not None and is_due:
                    self._validate(validate)
                self._report_epoch(end)
                if recipe.checkpointing_steps == "epoch":
                    self._save()
                self._stop_if_asked()
            if recipe.checkpointing_steps and self.saved_at != (progress.epoch, progress.step):
                self._save()
        if self.best is not None:
            self.base.load_state_dict(self.best)

    def _train_epoch(self, bar: Any) -> None:
        progress = self.progress
        self.wrapped.train()
        with read_ahead(self._prepared()) as prepared:
            while window := list(islice(prepared, self.recipe.gradient_accumulation_steps)):
                figures = self._step(window)
                progress.loss_sum += figures["loss"] * len(window)
                progress.step += 1
                progress.batch += len(window)
                bar.update()
                if progress.step % self.recipe.log_every_steps == 0:
                    bar.set_postfix(loss=f"{figures['loss']:.4f}")
                    tracked = {f"train/{name}": value for name, value in figures.items()}
                    self.accelerator.log(tracked, step=progress.step)
                every = self.recipe.checkpointing_steps
                if isinstance(every, int) and progress.step % every == 0:
                    self._save()
                self._stop_if_asked()

    def _prepared(self) -> Iterator[Prepared]:
        """Prepare the rest of an epoch's batches, in the thread that reads ahead."""
        epoch, start, step = self.progress.epoch, self.progress.batch, self.progress.step
        for number, batch in enumerate(self.batches.epoch(epoch, start=start)):
            one = self.objective.prepare(
                batch, step + number // self.recipe.gradient_accumulation_steps
            )
            yield replace(one, inputs=dict(pinned(one.inputs, self.accelerator.device)))

    def _step(self, window: list[Prepared]) -> dict[str, float]:
        """Take one optimizer step; return its figures."""
        step = self.progress.step
        seed_step(self.seed, step=step, rank=self.accelerator.process_index)
        learning_rate = learning_rate_at(step, self.n_steps, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss_sum = 0.0
        for prepared in window:
            # Gradients are averaged over the ranks with the last batch of the window.
            within: AbstractContextManager[None] = nullcontext()
            if prepared is not window[-1]:
                within = self.accelerator.no_sync(self.wrapped)
            with within:
                loss = self.wrapped(prepared)
                loss_sum += loss.item()
                if not math.isfinite(loss_sum):
                    raise self._not_finite(loss_sum, prepared)
                self.accelerator.backward(loss / len(window))
        norm = self._clip(loss_sum, window[-1])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": loss_sum / len(window), "learning_rate": learning_rate, "gradient_norm": norm
        }  # fmt: skip

    def _clip(self, loss: float, prepared: Prepared) -> float:
        """Clip the gradient and return the norm it had."""
        limit = self.recipe.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit).item()
        # With fp16 the scaler skips a step whose gradient overflowed, and tries a smaller scale.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise self._not_finite(loss, prepared)
        return float(norm)

    def _not_finite(self, loss: float, prepared: Prepared) -> ValueError:
        return ValueError(
            f"training stopped at step {self.progress.step + 1}: the loss or its gradient is not "
            f"finite (loss {loss}); {self.objective.explain(prepared)}. Look at these rows, or "
            "lower learning_rate or max_grad_norm"
        )

    def _mean_loss_sum(self) -> float:
        """Return the epoch's sum of losses so far, averaged over the processes."""
        total = torch.tensor(self.progress.loss_sum, dtype=torch.float64).to(
            self.accelerator.device
        )
        return float(self.accelerator.reduce(total, "mean").item())

    def _validate(self, validate: Validate) -> None:
        """Score the epoch on the main process; keep its weights if they are the best."""
        scores = [validate(self.base) if self.accelerator.is_main_process else 0.0]
        score = float(broadcast_object_list(scores)[0])
        if math.isnan(score):
            raise ValueError(f"the validation score of epoch {self.progress.epoch} is NaN")
        self.progress.history[-1]["score"] = score
        if self.progress.record_score(score):
            state = self.base.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _report_epoch(self, n_epochs: int) -> None:
        """Log and track the figures of the epoch that just ended."""
        progress, figures = self.progress, self.progress.history[-1]
        line = f"epoch {progress.epoch}/{n_epochs}  loss {figures['loss']:.4f}"
        if "score" in figures:
            is_best = progress.best_epoch == progress.epoch
            line += f"  validation {figures['score']:.4f}{' (best)' if is_best else ''}"
        if self.accelerator.is_main_process:
            logger.info("%s  %.1f s", line, figures["seconds"])
        tracked = {f"epoch/{name}": value for name, value in figures.items() if name != "epoch"}
        self.accelerator.log(tracked, step=progress.step)

    def _stop_if_asked(self) -> None:
        """Save and raise if a signal has come, to any of the processes."""
        number = torch.tensor(max(self.signals, default=0), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            number = self.accelerator.gather(number[None]).max()
        if number:
            if self.saved_at != (self.progress.epoch, self.progress.step):
                self._save()
            raise TrainingStoppedError(self.checkpoints.folder, self.progress.step, int(number))

    def _save(self) -> None:
        self.saved_at = (self.progress.epoch, self.progress.step)
        self.progress.loss_sum = self._mean_loss_sum()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            folder = self.checkpoints.save(
                self.base,
                self.optimizer.optimizer,
                progress=self.progress,
                best=self.best,
                extractor=self.data.extractor,
                facts={
                    "identity": self.identity,
                    "scaler": scaler and scaler.state_dict(),
                    "in_bfloat16": self.in_bfloat16,
                },
            )
            logger.info("saved %s", folder)
            if self.on_checkpoint is not None:
                self.on_checkpoint(TrainingCheckpoint(folder, self.base, self.data, self.progress))
        self.accelerator.wait_for_everyone()


def choose_bfloat16(
    accelerator: Accelerator, shape: tuple[int, int, int], resumed: bool | None
) -> bool:
    """Choose, and set Accelerate's autocast accordingly.

    Processors without instructions for bfloat16 multiply it many times slower than float32. The
    main process measures and the others follow.

    Args:
        accelerator: what will prepare the model.
        shape: positions of a step, items that each is scored with, size of an embedding.
        resumed: what the run that is resumed chose; None chooses now.
    """
    if accelerator.mixed_precision != "bf16":
        return False
    if accelerator.device.type != "cpu":
        return True
    chosen = resumed
    if chosen is None:
        times = seconds_of_products(*shape) if accelerator.is_main_process else None
        narrow, wide = broadcast_object_list([times])[0]
        chosen = bool(narrow < SLOWER * wide)
        logger.info(
            "mixed_precision: bf16: products of %d x %d x %d take %.2f ms in bfloat16 and %.2f in "
            "float32 here; the run computes in %s",
            *shape, 1000 * narrow, 1000 * wide, "bfloat16" if chosen else "float32",
        )  # fmt: skip
    accelerator.autocast_handler = AutocastKwargs(enabled=chosen)
    return chosen
