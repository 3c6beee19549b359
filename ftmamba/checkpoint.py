"""A checkpoint: the folder that holds all that recommending, and judging it, needs.

config.json, model.safetensors, *.py           what `AutoModel` loads
preprocessor_config.json, vocabularies.safetensors   what `AutoProcessor` loads
catalogue.safetensors                          items' keys, titles and embeddings
README.md, all_results.json, recipe.yaml       the card, its figures, the run that made them
learning_curves.png                            a picture on the card
local/                                         known users; never leaves the machine
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from ftmamba.atomic import whole_folder, whole_folder_at
from ftmamba.checks import (
    CONFIG_NAME,
    EXTRACTOR_NAME,
    LOCAL_FOLDER,
    check_catalogue,
    check_checkpoint,
    check_file,
    check_together,
    damaged,
    load_network,
    read_json,
    shown,
)
from ftmamba.hub import ERROR_OF_CLIENT, download_checkpoint, hide_tokens, known_tokens
from ftmamba.known_users import USERS_FILE, KnownUsers, load_known_users
from ftmamba.recipe import UniqueKeysLoader
from modeling_ftmamba.catalogue import CATALOGUE_NAME, Catalogue, load_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig, near
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

if TYPE_CHECKING:
    from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

CARD_FILE = "README.md"
CURVES_FILE = "learning_curves.png"
REQUIREMENTS_FILE = "requirements.txt"
RESULTS_FILE = "all_results.json"
RECIPE_FILE = "recipe.yaml"

PUBLISHED_FILES = (
    CONFIG_NAME,
    EXTRACTOR_NAME,
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "*.py",
    CATALOGUE_NAME,
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
"""What of an earlier checkpoint goes even if the new one has no such file. Code of other people
stays: only a file of the same name replaces it."""

_OF_A_RUN = (RESULTS_FILE, RECIPE_FILE)
"""What training may have written into the folder before the first checkpoint."""

_IN_MEMORY = """\
# The tables of this run were in memory, so it cannot be run again as it is: write them to files and
# name these under data: {interactions: ..., items: ..., users: ...}.
"""

_MOST_CARD_BYTES, _MOST_RECIPE_BYTES = 2**22, 2**16


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        model: both towers, in evaluation mode after loading.
        extractor: fitted on the training rows.
        catalogue: embedded by `model`.
        users: known by key; None where the folder `local/` is absent.
        card: text of the model card.
        results: figures of the evaluation, ready for JSON.
        recipe: the run, ready for YAML.
        pictures: file name to PNG, of those that the card shows; not read back.
    """

    model: "FTMambaTwoTowerModel"
    extractor: FTMambaFeatureExtractor
    catalogue: Catalogue
    users: KnownUsers | None = None
    card: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def save_checkpoint(
    folder: str | Path, checkpoint: Checkpoint, *, max_shard_size: str = "5GB"
) -> None:
    """Write a checkpoint; an earlier one in the same folder is replaced whole or not at all.

    Whatever else lies in the folder (training state, logs) stays.

    Args:
        folder: made if need be.
        checkpoint: what to write.
        max_shard_size: weights that are larger go into several files, none larger than this.

    Raises:
        ValueError: the catalogue was not made by the model's weights, or files of another kind
            in the folder would be lost.
        OSError: the disk is full, or the folder cannot be replaced.
    """
    catalogue, extractor = checkpoint.catalogue, checkpoint.extractor
    check_catalogue(catalogue, checkpoint.model, extractor.columns("item"), str(folder))
    folder = Path(folder).expanduser().resolve()
    check_nothing_lost(folder)
    results = json.dumps(dict(checkpoint.results), indent=2, ensure_ascii=False, allow_nan=False)
    recipe = recipe_text(checkpoint.recipe)
    with whole_folder(folder, owned=REPLACED_FILES) as new:
        save_network(new, checkpoint.model, extractor, max_shard_size=max_shard_size)
        catalogue.save(new / CATALOGUE_NAME)
        (new / CARD_FILE).write_text(checkpoint.card, encoding="utf-8")
        (new / RESULTS_FILE).write_text(results + "\n", encoding="utf-8")
        (new / RECIPE_FILE).write_text(recipe, encoding="utf-8")
        for name, picture in checkpoint.pictures.items():
            (new / name).write_bytes(picture)
        if checkpoint.users is not None:
            (new / LOCAL_FOLDER).mkdir()
            checkpoint.users.save(new / LOCAL_FOLDER)


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return what `recipe.yaml` holds; it says where there are no tables to run it on again."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    data = recipe.get("data")
    is_in_memory = isinstance(data, Mapping) and not (data.get("name") or data.get("interactions"))
    return f"{_IN_MEMORY}{text}" if is_in_memory else text


def save_network(
    folder: Path,
    model: "FTMambaTwoTowerModel",
    extractor: FTMambaFeatureExtractor,
    *,
    max_shard_size: str,
) -> None:
    """Write what embeds records, and the code that reads it."""
    # Here, for the pipeline imports much, which recommending does without.
    from modeling_ftmamba.pipeline_ftmamba import add_pipeline

    with _no_progress_bar():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    extractor.save_pretrained(folder)
    add_pipeline(folder)


def load_checkpoint(
    folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Read a checkpoint from a folder or from the Hub, once its files have been checked.

    Args:
        folder_or_repo: a folder, or a Hub id such as `name/repo`.
        revision: branch, tag or commit on the Hub.
        token: for a private repository; the default is the one of `hf auth login`.

    Raises:
        FileNotFoundError: neither a folder nor a repository is there, or a file is missing.
        ValueError: a file is truncated, damaged, of another version, or belongs to other weights.
    """

    def read(folder: Path, config: FTMambaConfig) -> Any:
        from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

        load_network(folder, config)
        with _no_progress_bar():
            return FTMambaTwoTowerModel.from_pretrained(folder, config=config)

    return _load(find_checkpoint(folder_or_repo, revision=revision, token=token), read)


def load_to_recommend(
    folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Read a checkpoint as `load_checkpoint` does, but in half the time, for recommending alone.

    Its `model` is the same network without Transformers' part, so it cannot be saved or trained.
    """
    return _load(find_checkpoint(folder_or_repo, revision=revision, token=token), load_network)


def _checked_parts(
    folder: Path, read: Callable[[Path, FTMambaConfig], Any], *, with_catalogue: bool = True
) -> tuple[Any, FTMambaFeatureExtractor, Any]:
    """Read model, extractor and catalogue (None without), checked alone and together."""
    config = check_checkpoint(folder, with_catalogue=with_catalogue)
    model = read(folder, config)
    try:
        extractor: FTMambaFeatureExtractor = FTMambaFeatureExtractor.from_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        problem = f"makes no extractor ({' '.join(str(error).split()):.400})"
        raise damaged(folder / EXTRACTOR_NAME, problem) from None
    catalogue = load_catalogue(folder / CATALOGUE_NAME) if with_catalogue else None
    check_together(folder, model, extractor, catalogue)
    return model, extractor, catalogue


def check_published(
    folder: Path, *, with_catalogue: bool
) -> tuple[FTMambaFeatureExtractor, Catalogue | None]:
    """Check weights, processor and catalogue as loading does; return the latter two."""
    return _checked_parts(folder, load_network, with_catalogue=with_catalogue)[1:]


def _load(folder: Path, read: Callable[[Path, FTMambaConfig], Any]) -> Checkpoint:
    model, extractor, catalogue = _checked_parts(folder, read)
    local, users = folder / LOCAL_FOLDER, None
    if local.is_dir():
        users = load_known_users(local, key=extractor.user_key, n_items=len(catalogue))
        known = {extractor.user_key, *(column["name"] for column in extractor.user_columns)}
        if others := sorted(set(users.records.column_names) - known):
            problem = f"has columns that the model does not read: {', '.join(others):.200}"
            raise damaged(local / USERS_FILE, problem)
    results = folder / RESULTS_FILE
    return Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=catalogue,
        users=users,
        card=_read_text(folder / CARD_FILE, _MOST_CARD_BYTES),
        results=read_json(results) if results.exists() else {},
        recipe=read_recipe_file(folder / RECIPE_FILE),
    )


def _read_text(path: Path, most_bytes: int) -> str:
    """Read a text file in UTF-8; an absent one is empty."""
    if not path.exists():
        return ""
    check_file(path, most_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"is no UTF-8 ({error})") from None


class _PlainLoader(UniqueKeysLoader):
    """Reads YAML without aliases, of which a short text can make a long one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which is not allowed here")
        return super().compose_node(parent, index)


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read the recipe of a run, with a safe loader; an absent file holds none."""
    try:
        recipe = yaml.load(_read_text(path, _MOST_RECIPE_BYTES), _PlainLoader)
    except (yaml.YAMLError, TypeError, OverflowError, RecursionError, ValueError) as error:
        problem = f"is no YAML of a recipe ({' '.join(str(error).split()):.200})"
        raise damaged(path, problem) from None
    if not isinstance(recipe, dict | None):
        raise damaged(path, f"must be a mapping, got {shown(recipe)}")
    return recipe or {}


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
    name, guess = str(folder_or_repo), ""
    if folder.parent.is_dir():
        beside = [one.name for one in folder.parent.iterdir() if (one / CONFIG_NAME).is_file()]
        guess = near(folder.name, beside)
    missing = f"no folder {name!r}{guess}"
    if guess or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(missing)
    patterns = [one for one in PUBLISHED_FILES if one not in _NOT_LOADED]
    try:
        return download_checkpoint(name, revision=revision, token=token, patterns=patterns)
    except RevisionNotFoundError:
        problem = f"the repository {name!r} has no revision {revision!r}"
    except RepositoryNotFoundError:
        problem = (
            f"{missing}, and no such repository on the Hub; if it is private, give token=... or "
            "run `hf auth login`"
        )
    except (HFValidationError, ERROR_OF_CLIENT, OSError) as error:
        # The Hub's answer may repeat what was sent to it.
        answer = hide_tokens(" ".join(str(error).split()), known_tokens(token))
        problem = f"{missing}, and it could not be loaded from the Hub: {answer}"
    raise FileNotFoundError(problem)


def check_nothing_lost(folder: Path) -> None:
    """Refuse a file, and a folder with files of another kind, such as a project with its code."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give an empty or a new folder")
    config = folder / CONFIG_NAME
    if not folder.is_dir() or (
        config.is_file() and read_json(config).get("model_type") == FTMambaConfig.model_type
    ):
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


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence the progress bars of Transformers."""
    shown_before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown_before:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
