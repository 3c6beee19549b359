"""Where a training run stands, as plain values that a checkpoint keeps."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        epoch: epochs finished.
        batch: batches of the current epoch that are done.
        step: optimizer steps taken.
        loss_sum: sum of the losses of the current epoch's batches.
        history: a mapping of figures for each finished epoch.
        best_epoch: number of epochs after which the validation score was best; 0 before any.
        best_score: that score.
        n_stale: validations since then.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    n_stale: int = 0

    def take_score(self, score: float) -> bool:
        """Record the validation score of the epoch that just ended; say if it is the best."""
        if self.best_score is not None and score <= self.best_score:
            self.n_stale += 1
            return False
        self.best_epoch, self.best_score, self.n_stale = self.epoch, score, 0
        return True

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0
