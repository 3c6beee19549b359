"""Training state on disk: whole or absent, never pickled.

A folder `step-00001200` holds `model.safetensors`, `optimizer.safetensors` (AdamW's tensors, named
`<state>/<parameter>`), `best.safetensors` (the best weights so far, where a validation has picked
some), the feature extractor and `training_state.json`, which says of which run it is. No random
state is in it: the randomness of a step is a function of (seed, step, rank).
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftmamba.atomic import whole_folder, whole_folder_at
from ftmamba.checkpoint import RESULTS_FILE
from ftmamba.checks import EXTRACTOR_NAME, VOCABULARY_NAME, read_json
from ftmamba.data.encoded import EncodedData
from ftmamba.data.tables import Tables
from ftmamba.identity import Identity, data_differences, differences
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
STATE_FILE = "training_state.json"
STATE_FILES = (
    "best.safetensors", "model.safetensors", "optimizer.safetensors", EXTRACTOR_NAME,
    VOCABULARY_NAME, STATE_FILE,
)  # fmt: skip
"""Of the folder of one state: all that resuming reads."""
STATE_FOLDERS = CHECKPOINTS, REFIT, RIVALS = ("checkpoints", "refit", "rivals")
"""Folders of a run's training states: of the model, of its refit, and of the rivals."""


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
        start_epoch: epochs finished when the data last changed; 0 if they never did.
        start_step: steps taken by then.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    n_stale: int = 0
    start_epoch: int = 0
    start_step: int = 0

    def begin_on_changed_data(self) -> None:
        """Go on at the beginning of an epoch; what validation found on the former data is void."""
        self.start_epoch, self.start_step = self.epoch, self.step
        self.batch, self.loss_sum = 0, 0.0
        self.best_epoch, self.best_score, self.n_stale = 0, None, 0

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

    def __init__(self, folder: Path, total_limit: int = 0) -> None:
        self.folder = folder
        self.total_limit = total_limit

    def list(self) -> list[Path]:
        """Return the complete checkpoints in the order of their steps."""
        # One that was being replaced when the process died lies beside its place.
        cut_short = self.folder.glob(".step-*.previous")
        names = {path.name[1:].removesuffix(".previous") for path in cut_short}
        names |= {path.name for path in self.folder.glob("step-*")}
        found = [whole_folder_at(self.folder / name) for name in sorted(names)]
        return [path for path in found if (path / STATE_FILE).is_file()]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        progress: Progress,
        best: Mapping[str, Tensor] | None,
        extractor: FTMambaFeatureExtractor,
        facts: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint under a temporary name, rename it, then remove the oldest before it.

        Args:
            model: the model itself, not its wrapper.
            optimizer: AdamW over its parameters.
            progress: where the run stands.
            best: the best weights so far.
            extractor: that encoded what it trains on.
            facts: the run's identity, and what else resuming needs, as plain values.

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
            extractor.to_json_file(partial / EXTRACTOR_NAME)
            (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if self.total_limit:
            # Those after it were there before it: of the same run, resumed from an earlier one.
            until = [path for path in self.list() if path.name.lstrip(".") <= target.name]
            for old in until[: -self.total_limit]:
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


def read_extractor(folder: Path, identity: Identity) -> FTMambaFeatureExtractor | None:
    """Return the extractor of a run whose data changed; None where fitting gives the same one."""
    state = read_state(folder)
    if not state["progress"]["start_step"] and state["identity"]["data"] == identity["data"]:
        return None
    extractor: FTMambaFeatureExtractor = FTMambaFeatureExtractor.from_pretrained(folder)
    return extractor


def load_weights(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and AdamW's state back.

    Raises:
        ValueError: they are of another network.
    """
    try:
        model.load_state_dict(read_tensors(folder / "model.safetensors"))
    except RuntimeError as error:
        problem = f"the weights in {str(folder)!r} are of another network: {error!s:.200}"
        raise ValueError(f"{problem}; start afresh in another output_dir") from None
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


def check_same_run(
    folder: Path, current: Identity, *, allowed: Collection[str], tables: Tables | None = None
) -> None:
    """Check that a checkpoint is of the run that resumes from it.

    Args:
        folder: the checkpoint.
        current: the identity of the run that resumes.
        allowed: parts that may differ: `data`, where rows were added or columns changed beside the
            same users, items and interactions, and `code`.
        tables: what the run reads now; None takes the data's difference as it stands.

    Raises:
        ValueError: they differ; says in what.
    """
    stored = read_state(folder)["identity"]
    free = set(allowed) | ({"training.num_epochs"} if "data" in allowed else set())
    problems: list[str] = []
    others = differences(stored, current, without=free)
    is_extended = True
    if tables is not None:
        problems, is_extended = data_differences(stored.get("data", {}), tables)
    elif stored.get("data") != current.get("data"):
        problems = ["the data differ"]
    if "data" in allowed and is_extended:
        problems = []
    if not (problems or others):
        return
    remedy = "Give the same values, or start afresh in another output_dir"
    if not others and is_extended:
        remedy += "; --allow_changed data goes on with the data as they are now"
    elif not problems and all(one.startswith("code.") for one in others):
        remedy += "; --allow_changed code goes on with the code as it is now"
    raise ValueError(
        f"the checkpoint {str(folder)!r} is of another run, so resuming would not repeat it: "
        f"{'; '.join([*problems, *others])}. {remedy}"
    )


def check_output_dir(folder: Path, identity: Identity) -> str:
    """Return in what the run that a folder holds differs from this one; empty if in nothing."""
    held = []
    if (newest := CheckpointStore(folder / CHECKPOINTS).find("latest")) is not None:
        held.append(read_state(newest)["identity"])
    if (folder / RESULTS_FILE).is_file():
        held.append(read_json(folder / RESULTS_FILE).get("identity"))
    for stored in held:
        if not isinstance(stored, dict):
            return "it does not say of which run it is"
        found = differences(stored, identity)
        if stored.get("data") != identity.get("data"):
            found = ["the data are others", *found]
        if found:
            return "; ".join(found)
    return ""


def set_aside(folder: Path) -> None:
    """Move training states of an earlier run into a folder of their own, `earlier-1`."""
    kept = [folder / name for name in STATE_FOLDERS if (folder / name).is_dir()]
    if not kept:
        return
    number = next(n for n in count(1) if not (folder / f"earlier-{n}").exists())
    target = folder / f"earlier-{number}"
    target.mkdir()
    for path in kept:
        path.rename(target / path.name)
    logger.info("the training states of an earlier run are kept in %s", target)


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
