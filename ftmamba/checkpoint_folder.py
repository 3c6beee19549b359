"""The folder of a checkpoint: where it is, what belongs to it, whether it is one.

config.json, model.safetensors, *.py           what `AutoModel` loads
preprocessor_config.json, vocabularies.safetensors   what `AutoProcessor` loads
catalogue.safetensors                          items' keys, titles and embeddings
README.md, all_results.json, recipe.yaml       the card, its figures, the run that made them
learning_curves.png                            a picture on the card
local/                                         known users; never leaves the machine
"""

import re
from pathlib import Path

from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ftmamba.atomic import whole_folder_at
from ftmamba.hub import ERROR_OF_CLIENT, download_checkpoint, hide_tokens, known_tokens
from modeling_ftmamba.checked_files import damaged, read_json
from modeling_ftmamba.columns import near
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig

CONFIG_FILE = "config.json"
CATALOGUE_FILE = "catalogue.safetensors"
CARD_FILE = "README.md"
CURVES_FILE = "learning_curves.png"
REQUIREMENTS_FILE = "requirements.txt"
RESULTS_FILE = "all_results.json"
RECIPE_FILE = "recipe.yaml"
LOCAL_FOLDER = "local"

PUBLISHED_FILES = (
    CONFIG_FILE,
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "*.py",
    CATALOGUE_FILE,
    CARD_FILE,
    CURVES_FILE,
    REQUIREMENTS_FILE,
    RESULTS_FILE,
    RECIPE_FILE,
)
"""Patterns of what a checkpoint publishes; whatever else lies in its folder stays local."""

_NOT_LOADED = ("*.py", CURVES_FILE, REQUIREMENTS_FILE)
"""Published files that loading with this library can do without: it brings the code."""

REPLACED_FILES = (*(name for name in PUBLISHED_FILES if name != "*.py"), LOCAL_FOLDER)
"""What of an earlier checkpoint goes even if the new one has no such file. Other people's code
does not: it goes only where the new checkpoint has a file of that name."""

_PICKLES = frozenset(
    [".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"]
)
"""Endings of formats that can hold pickles, which run code when they are read."""

_OF_A_RUN = (RESULTS_FILE, RECIPE_FILE)
"""What training may have written into the folder before the first checkpoint."""


def find_checkpoint(
    folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the folder of a checkpoint, downloaded first if it is a Hub id.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a repository.
    """
    folder = whole_folder_at(Path(folder_or_repo).expanduser().resolve())
    if folder.is_dir():
        return folder
    missing = f"no folder {str(folder_or_repo)!r}{_near_folder(folder)}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder_or_repo)) or "did you mean" in missing:
        raise FileNotFoundError(missing)
    try:
        patterns = [one for one in PUBLISHED_FILES if one not in _NOT_LOADED]
        return download_checkpoint(
            str(folder_or_repo), revision=revision, token=token, patterns=patterns
        )
    except RevisionNotFoundError:
        raise FileNotFoundError(
            f"the repository {str(folder_or_repo)!r} has no revision {revision!r}; "
            "give a branch, a tag or a commit of it"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{missing}, and no such repository on the Hub; if it is private, give token=... or "
            "run `hf auth login`"
        ) from None
    except (HFValidationError, ERROR_OF_CLIENT, OSError) as error:
        # What the Hub answers may repeat what was sent to it.
        reason = hide_tokens(" ".join(str(error).split()), known_tokens(token))
        raise FileNotFoundError(
            f"{missing}, and it could not be loaded from the Hub: {reason}"
        ) from None


def _near_folder(folder: Path) -> str:
    """Suggest a checkpoint beside the missing folder."""
    if not folder.parent.is_dir():
        return ""
    beside = [path.name for path in folder.parent.iterdir() if (path / CONFIG_FILE).is_file()]
    suggestion = near(folder.name, beside)
    if suggestion or not beside:
        return suggestion
    return f"; checkpoints beside it: {', '.join(sorted(beside)[:5])}"


def check_kind(folder: Path) -> None:
    """Check that a folder holds a two-tower FT-Mamba at all, and nothing that is a pickle.

    Raises:
        FileNotFoundError: it has no config.
        ValueError: it holds another model, or a file of a format that can run code.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {CONFIG_FILE}, so it is no checkpoint; give the output_dir of "
            "a finished run, or a Hub id"
        )
    model_type = _model_type(folder)
    expected = FTMambaConfig.model_type
    if model_type != expected:
        raise ValueError(
            f"{str(folder)!r} holds a model of type {model_type!r:.80}, a recommender needs "
            f"{expected!r}; give another checkpoint"
        )
    local = folder / LOCAL_FOLDER
    if local.is_symlink():
        raise damaged(local, "is a link that may leave its checkpoint", "copy it into the folder")
    for path in sorted([*folder.iterdir(), *(local.iterdir() if local.is_dir() else ())]):
        if path.suffix.lower() in _PICKLES:
            raise damaged(
                path,
                "may be a pickle, which can run code when it is read; only safetensors, JSON, "
                "Parquet and text are",
                "remove it; weights go into model.safetensors with save_pretrained(...)",
            )


def _model_type(folder: Path) -> object:
    path = folder / CONFIG_FILE
    return read_json(path).get("model_type") if path.is_file() else None


def check_nothing_lost(folder: Path) -> None:
    """Refuse a folder of somebody's own, such as a project with its README and code."""
    if not folder.is_dir() or _model_type(folder) == FTMambaConfig.model_type:
        return
    lost = [
        path.name
        for path in sorted(folder.iterdir())
        if any(path.match(pattern) for pattern in (*PUBLISHED_FILES, LOCAL_FOLDER))
        and path.name not in _OF_A_RUN
    ]
    if lost:
        raise ValueError(
            f"{str(folder)!r} is no FT-Mamba checkpoint, and saving one there could replace "
            f"{', '.join(lost[:3])}; give an empty or a new folder"
        )
