"""Training state on disk: whole or absent, never pickled.

A folder `step-00001200` holds `model.safetensors`, `optimizer.safetensors` (AdamW's tensors, named
`<state>/<parameter>`), `best.safetensors` (the best weights so far, where a validation has picked
some) and `training_state.json`. No random state is in it: the randomness of a step is a function of
(seed, step, rank).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftmamba.atomic import whole_folder
from ftmamba.data.encoded import EncodedData
from ftmamba.recipe import TrainingRecipe, to_plain
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

FORMAT_VERSION = 2
STATE_FILE = "training_state.json"

FREE_TO_CHANGE = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "early_stopping_patience",
    "evaluate_every",
    "log_every_steps",
    "report_to",
    "resume_from_checkpoint",
    "stop_after_epochs",
    "with_tracking",
)
"""Options that say when to look, save or stop, and change no step."""


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

    def record_score(self, score: float) -> bool:
        """Record the validation score of the epoch that just ended; return whether it is best."""
        if self.best_score is not None and score <= self.best_score:
            self.n_stale += 1
            return False
        self.best_epoch, self.best_score, self.n_stale = self.epoch, score, 0
        return True


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A training checkpoint that was just written; valid until the callback returns.

    Attributes:
        folder: what resuming needs.
        model: with the weights of that step, without what Accelerate puts around it.
        data: what it trains on.
        progress: where the run stands.
    """

    folder: Path
    model: FTMambaTwoTowerModel
    data: EncodedData
    progress: Progress


OnCheckpoint = Callable[[TrainingCheckpoint], None]
"""Called after each training checkpoint, on the main process alone, while the others wait."""


class CheckpointStore:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, total_limit: int) -> None:
        self.folder = folder
        self.total_limit = total_limit

    def list(self) -> list[Path]:
        """Return the complete checkpoints in the order of their steps."""
        found = self.folder.glob("step-*")
        return sorted(path for path in found if (path / STATE_FILE).is_file())

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        progress: Progress,
        best: Mapping[str, Tensor] | None,
        facts: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint under a temporary name, rename it, then remove the oldest.

        Args:
            model: the model itself, not its wrapper.
            optimizer: AdamW over its parameters.
            progress: where the run stands.
            best: the best weights so far.
            facts: what must be equal on resuming, as plain values; and the gradient scaler.

        Raises:
            OSError: the disk is full; earlier checkpoints are untouched.
        """
        target = self.folder / f"step-{progress.step:08d}"
        state = {"format_version": FORMAT_VERSION, "progress": asdict(progress), **facts}
        with whole_folder(target, owned=("*",)) as partial:
            save_file(_contiguous(model.state_dict()), partial / "model.safetensors")
            save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
            if best is not None:
                save_file(_contiguous(best), partial / "best.safetensors")
            (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if self.total_limit:
            for old in self.list()[: -self.total_limit]:
                shutil.rmtree(old)
        return target

    def find(self, wanted: str) -> Path | None:
        """Return the folder named, or the newest for `latest`, None where there is none yet.

        Raises:
            FileNotFoundError: a folder that is named is no checkpoint.
        """
        if wanted == "latest":
            return next(reversed(self.list()), None)
        path = Path(wanted)
        if not (path / STATE_FILE).is_file():
            names = ", ".join(str(known) for known in self.list()) or "none"
            raise FileNotFoundError(
                f"resume_from_checkpoint: {wanted!r} holds no training state; this run's "
                f"checkpoints: {names}"
            )
        return path


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a run from its checkpoint.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _damaged(folder / STATE_FILE) from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {str(folder)!r} has format_version {version!r}; this version of ftmamba "
            f"reads {FORMAT_VERSION}: resume with the version that wrote it"
        )
    return dict(state)


def load_weights(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and AdamW's state back."""
    model.load_state_dict(read_tensors(folder / "model.safetensors"))
    tensors = read_tensors(folder / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][kind] = tensor.to(parameter.device)


def read_best(folder: Path) -> dict[str, Tensor] | None:
    """Read the best weights so far, None where no validation has picked any."""
    path = folder / "best.safetensors"
    return read_tensors(path) if path.exists() else None


def facts_of_run(
    recipe: TrainingRecipe, *, seed: int, n_processes: int, n_batches: int
) -> dict[str, Any]:
    """Return what shapes every step of a run, as plain values."""
    options = {k: v for k, v in to_plain(recipe).items() if k not in FREE_TO_CHANGE}
    options |= {f"loss.{name}": value for name, value in options.pop("loss").items()}
    return {**options, "seed": seed, "n_processes": n_processes, "batches an epoch": n_batches}


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise ValueError naming every fact in which a checkpoint's run differs from this one."""
    differences = [
        f"{name} was {stored.get(name)!r} and is {current.get(name)!r}"
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            "the checkpoint is of another run, so resuming would not repeat it: "
            f"{'; '.join(differences)}. Give the same values, or start afresh without "
            "resume_from_checkpoint"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: it is truncated.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        raise _damaged(path) from None
    return tensors


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": value.detach().clone()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{str(path)!r} is damaged or cut short; remove its folder and resume from an earlier "
        "checkpoint"
    )
