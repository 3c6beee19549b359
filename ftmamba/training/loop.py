"""The state and the steps of a training run."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ftmamba.data.encoded import EncodedData
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.batching import LONGEST_WINDOW, make_batches
from ftmamba.training.checkpoints import CheckpointStore, load_weights, read_best, read_state
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.feed import Batch, Prepared, feed
from ftmamba.training.finite import explain_loss
from ftmamba.training.objectives import known_positives, make_objective
from ftmamba.training.optimizer import make_optimizer
from ftmamba.training.precision import choose_bfloat16
from ftmamba.training.progress import Progress
from ftmamba.training.randomness import seed_step
from ftmamba.training.report import ProgressReport
from ftmamba.training.resume import check_same_run, facts_of_run
from ftmamba.training.saved import Saved, Watch
from ftmamba.training.schedule import learning_rate_at
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

logger = logging.getLogger(__name__)
Validate = Callable[[FTMambaTwoTowerModel], float]


class TrainingLoop:
    """One run: what `fit` drives."""

    def __init__(
        self,
        model: FTMambaTwoTowerModel,
        data: EncodedData,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        *,
        folder: Path,
        seed: int,
        watch: Watch | None = None,
    ) -> None:
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps is set for Accelerate, got "
                f"{accelerator.gradient_accumulation_steps}; set it in the recipe's training "
                "section instead"
            )
        self.recipe, self.accelerator, self.seed, self.data = recipe, accelerator, seed, data
        self.watch = watch
        self.base = model.to(accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.checkpoints = CheckpointStore(folder, recipe.checkpoints_total_limit)
        self.resumed = self._find_resumed()
        self.in_bfloat16 = choose_bfloat16(
            accelerator,
            self._shape_of_products(),
            resumed=None if self.resumed is None else read_state(self.resumed).get("in_bfloat16"),
        )
        self.model, self.optimizer = accelerator.prepare(
            self.base, make_optimizer(self.base, recipe)
        )
        self.batches = make_batches(
            recipe,
            data,
            seed=seed,
            rank=accelerator.process_index,
            n_ranks=accelerator.num_processes,
        )
        self.steps_per_epoch = -(-self.batches.n_batches // recipe.gradient_accumulation_steps)
        self.n_steps = self.steps_per_epoch * recipe.num_epochs
        self.embedder = PairEmbedder(self.model, self.base, data, accelerator.device)
        self.objective = make_objective(
            recipe,
            self.embedder,
            rank=accelerator.process_index,
            seed=seed,
            known=known_positives(data) if recipe.loss.mask_known_positives else None,
            in_bfloat16=self.in_bfloat16,
        )
        self.facts = facts_of_run(
            recipe,
            seed=seed,
            n_processes=accelerator.num_processes,
            n_batches=self.batches.n_batches,
        )
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None

    def _find_resumed(self) -> Path | None:
        """Return the recipe's checkpoint, if it names one."""
        wanted = self.recipe.resume_from_checkpoint
        folder = self.checkpoints.find(wanted) if wanted else None
        if wanted and folder is None:
            logger.info("no checkpoint in %s yet; starting afresh", self.checkpoints.folder)
        return folder

    def _shape_of_products(self) -> tuple[int, int, int]:
        """Return positions of a step, items that each is scored with, and an embedding's size."""
        recipe = self.recipe
        length = LONGEST_WINDOW if recipe.sequences else 1
        n_positions = recipe.batch_size * length
        all_items = recipe.loss.name in ("full_softmax", "full_mse")
        n_items = self.data.n_items if all_items else recipe.batch_size
        return n_positions, n_items, self.base.config.projection_size

    def resume(self) -> None:
        """Go on from the recipe's checkpoint, if it names one."""
        folder = self.resumed
        if folder is None:
            return
        state = read_state(folder)
        check_same_run(state["run"], self.facts)
        load_weights(folder, self.base, self.optimizer.optimizer)
        self.best = read_best(folder)
        self.progress = Progress(**state["progress"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        logger.info("resumed from %s after step %d", folder, self.progress.step)

    def run(self, validate: Validate | None) -> None:
        """Train to the end, an early stop included, and put the best weights in the model."""
        recipe, progress = self.recipe, self.progress
        end = min(recipe.num_epochs, recipe.stop_after_epochs or recipe.num_epochs)
        with ProgressReport(
            self.accelerator,
            self.steps_per_epoch * end,
            done=progress.step,
            log_every_steps=recipe.log_every_steps,
        ) as report:
            while progress.epoch < end and not self._is_stale():
                started = time.perf_counter()
                self._train_epoch(report)
                progress.history.append(self._figures(time.perf_counter() - started))
                progress.next_epoch()
                is_due = progress.epoch % recipe.evaluate_every == 0 or progress.epoch == end
                if validate is not None and is_due:
                    self._validate(validate)
                report.epoch(progress, end)
                if recipe.checkpointing_steps == "epoch":
                    self._save()
        if self.best is not None:
            self.base.load_state_dict(self.best)

    def release(self) -> None:
        """Take the model out of Accelerate, so that it is as it was given."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # Autocast was put around this instance's `forward`; the class has the plain one.
        vars(self.base).pop("forward", None)
        self.accelerator.free_memory()

    def _train_epoch(self, report: ProgressReport) -> None:
        progress = self.progress
        self.model.train()
        batches = self._batches(progress.epoch, start=progress.batch, step=progress.step)
        with feed(self.objective, batches, self.accelerator.device) as prepared:
            while window := list(islice(prepared, self.recipe.gradient_accumulation_steps)):
                figures = self._step(window)
                progress.loss_sum += figures["loss"] * len(window)
                progress.step += 1
                progress.batch += len(window)
                report.step(progress.step, figures)
                every = self.recipe.checkpointing_steps
                if isinstance(every, int) and progress.step % every == 0:
                    self._save()

    def _batches(self, epoch: int, *, start: int, step: int) -> Iterator[tuple[Batch, int]]:
        """Yield the rest of an epoch's batches, each with the optimizer step it belongs to."""
        for number, batch in enumerate(self.batches.epoch(epoch, start=start)):
            yield batch, step + number // self.recipe.gradient_accumulation_steps

    def _step(self, window: list[Prepared]) -> dict[str, float]:
        """Take one optimizer step; return its figures."""
        step = self.progress.step
        seed_step(self.seed, step=step, rank=self.accelerator.process_index)
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss_sum = 0.0
        for prepared in window:
            with self._gradients_meet() if prepared is window[-1] else self._gradients_stay():
                loss = self.objective(prepared)
                self._check_finite(loss.item(), prepared.batch)
                self.accelerator.backward(loss / len(window))
            loss_sum += loss.item()
        norm = self._clip(loss_sum, window[-1].batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": loss_sum / len(window), "learning_rate": learning_rate, "gradient_norm": norm
        }  # fmt: skip

    def _clip(self, loss: float, batch: Batch) -> float:
        """Clip the gradient and return the norm it had."""
        limit = self.recipe.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit).item()
        # With fp16 the scaler skips a step whose gradient overflowed, and tries a smaller scale.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self._check_finite(math.nan, batch, shown=loss)
        return float(norm)

    def _check_finite(self, loss: float, batch: Batch, shown: float | None = None) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                explain_loss(
                    loss if shown is None else shown,
                    step=self.progress.step,
                    batch=batch,
                    embedder=self.embedder,
                )
            )

    def _gradients_meet(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _gradients_stay(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.model)
        return context

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(step, self.n_steps, self.recipe)

    def _is_stale(self) -> bool:
        patience = self.recipe.early_stopping_patience
        return bool(patience) and self.progress.n_stale >= patience

    def _figures(self, seconds: float) -> dict[str, float]:
        return {
            "epoch": self.progress.epoch + 1,
            "loss": self._mean_loss_sum() / self.batches.n_batches,
            "learning_rate": self._learning_rate(self.progress.step - 1),
            "seconds": seconds,
        }

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
        if self.progress.take_score(score):
            state = self.base.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _save(self) -> None:
        self.progress.loss_sum = self._mean_loss_sum()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            folder = self.checkpoints.save(
                self.base,
                self.optimizer.optimizer,
                progress=self.progress,
                best=self.best,
                facts={
                    "run": self.facts,
                    "scaler": scaler and scaler.state_dict(),
                    "in_bfloat16": self.in_bfloat16,
                },
            )
            logger.info("saved %s", folder)
            if self.watch is not None:
                self.watch(Saved(folder, self.base, self.data, self.progress))
        self.accelerator.wait_for_everyone()
