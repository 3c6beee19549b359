"""The training loop: the one way in which every model here is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ftmamba.data.encoded import EncodedData
from ftmamba.recipe import TrainingRecipe
from ftmamba.training.finite import check_features
from ftmamba.training.loop import TrainingLoop
from ftmamba.training.saved import Watch
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel


@dataclass(frozen=True)
class FitResult:
    """What a training run came to.

    Attributes:
        best_epoch: epochs after which the validation score was best; all without validation.
        best_score: that score, None without validation.
        history: for each epoch its number, loss, learning rate, seconds and, where validated,
            score.
    """

    best_epoch: int
    best_score: float | None
    history: list[dict[str, float]]


def fit(  # noqa: PLR0913 - one more than seven: who judges and who watches are two people
    model: FTMambaTwoTowerModel,
    data: EncodedData,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    *,
    validate: Callable[[FTMambaTwoTowerModel], float] | None,
    output_dir: Path,
    seed: int = 0,
    watch: Watch | None = None,
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
        watch: told of each state that is saved, on the main process.

    Raises:
        ValueError: infinite features, a loss that is not finite, or a checkpoint of another run.
    """
    check_features(data)
    loop = TrainingLoop(
        model, data, recipe, accelerator,
        folder=output_dir / "checkpoints", seed=seed, watch=watch,
    )  # fmt: skip
    try:
        loop.resume()
        loop.run(validate)
    finally:
        loop.release()
    progress = loop.progress
    return FitResult(progress.best_epoch or progress.epoch, progress.best_score, progress.history)
