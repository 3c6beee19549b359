"""What a person and a tracker see of a training run; the main process alone speaks."""

import logging
from types import TracebackType

from accelerate import Accelerator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ftmamba.training.progress import Progress

logger = logging.getLogger(__name__)


class ProgressReport:
    """A bar over the optimizer steps, a line an epoch, and the tracker's figures."""

    def __init__(
        self, accelerator: Accelerator, n_steps: int, *, done: int, log_every_steps: int
    ) -> None:
        self.accelerator = accelerator
        self.log_every_steps = log_every_steps
        # None hides the bar where the output is no terminal.
        hidden = None if accelerator.is_main_process else True
        self.bar = tqdm(total=n_steps, initial=done, unit="step", disable=hidden)
        self.redirect = logging_redirect_tqdm()

    def __enter__(self) -> "ProgressReport":
        self.redirect.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.redirect.__exit__(kind, error, trace)

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Move the bar; track the figures of every so many steps."""
        self.bar.update()
        if step % self.log_every_steps == 0:
            self.bar.set_postfix(loss=f"{figures['loss']:.4f}")
            self._track({f"train/{name}": value for name, value in figures.items()}, step)

    def epoch(self, progress: Progress, n_epochs: int) -> None:
        """Say how the epoch that just ended went."""
        figures = progress.history[-1]
        line = f"epoch {progress.epoch}/{n_epochs}  loss {figures['loss']:.4f}"
        if "score" in figures:
            is_best = progress.best_epoch == progress.epoch
            line += f"  validation {figures['score']:.4f}{' (best)' if is_best else ''}"
        if self.accelerator.is_main_process:
            logger.info("%s  %.1f s", line, figures["seconds"])
        tracked = {f"epoch/{name}": value for name, value in figures.items() if name != "epoch"}
        self._track(tracked, progress.step)

    def _track(self, figures: dict[str, float], step: int) -> None:
        self.accelerator.log(figures, step=step)
