"""A checkpoint: all that recommending, and judging it, needs; see `checkpoint_folder`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ftmamba.atomic import whole_folder
from ftmamba.checkpoint_folder import (
    CARD_FILE,
    CATALOGUE_FILE,
    LOCAL_FOLDER,
    RECIPE_FILE,
    REPLACED_FILES,
    RESULTS_FILE,
    check_kind,
    check_nothing_lost,
    find_checkpoint,
)
from ftmamba.checkpoint_reading import (
    check_fingerprint,
    check_together,
    no_progress_bar,
    read_card,
    read_model,
    read_recipe,
    read_results,
    read_towers,
)
from ftmamba.known_users import KnownUsers, load_known_users
from modeling_ftmamba.catalogue_file import Catalogue, load_catalogue
from modeling_ftmamba.pipeline_files import add_pipeline
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

if TYPE_CHECKING:
    from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        model: both towers, in evaluation mode after loading.
        extractor: fitted on the training rows.
        catalogue: embedded by `model`.
        users: who is known by key; None where the folder `local/` is absent.
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
    check_fingerprint(checkpoint.catalogue, checkpoint.model, str(folder))
    folder = Path(folder).expanduser().resolve()
    check_nothing_lost(folder)
    with whole_folder(folder, owned=REPLACED_FILES) as new:
        save_network(new, checkpoint.model, checkpoint.extractor, max_shard_size=max_shard_size)
        checkpoint.catalogue.save(new / CATALOGUE_FILE)
        (new / CARD_FILE).write_text(checkpoint.card, encoding="utf-8")
        for name, picture in checkpoint.pictures.items():
            (new / name).write_bytes(picture)
        (new / RESULTS_FILE).write_text(
            json.dumps(dict(checkpoint.results), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n",
            encoding="utf-8",
        )
        (new / RECIPE_FILE).write_text(
            yaml.safe_dump(dict(checkpoint.recipe), sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
        if checkpoint.users is not None:
            (new / LOCAL_FOLDER).mkdir()
            checkpoint.users.save(new / LOCAL_FOLDER)


def save_network(
    folder: Path,
    model: "FTMambaTwoTowerModel",
    extractor: FTMambaFeatureExtractor,
    *,
    max_shard_size: str,
) -> None:
    """Write what embeds records, and the code that reads it."""
    with no_progress_bar():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    extractor.save_pretrained(folder)
    add_pipeline(folder)


def load_checkpoint(
    folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Read a checkpoint from a folder or from the Hub.

    Args:
        folder_or_repo: a folder, or a Hub id such as `name/repo`.
        revision: branch, tag or commit on the Hub.
        token: for a private repository; the default is the one of `hf auth login`.

    Raises:
        FileNotFoundError: neither a folder nor a repository is there, or a file is missing.
        ValueError: a file is truncated, damaged, of another version, or belongs to other weights.
    """
    return _load(find_checkpoint(folder_or_repo, revision=revision, token=token), read_model)


def load_to_recommend(
    folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Read a checkpoint as `load_checkpoint` does, but in less time, for one that only recommends.

    Its `model` is the same network without Transformers' part, so it cannot be saved or trained.
    """
    return _load(find_checkpoint(folder_or_repo, revision=revision, token=token), read_towers)


def _load(folder: Path, read: Callable[[Path], Any]) -> Checkpoint:
    check_kind(folder)
    model = read(folder)
    extractor: FTMambaFeatureExtractor = FTMambaFeatureExtractor.from_pretrained(folder)
    local = folder / LOCAL_FOLDER
    checkpoint = Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=load_catalogue(folder / CATALOGUE_FILE),
        users=load_known_users(local, key=extractor.user_key) if local.is_dir() else None,
        card=read_card(folder),
        results=read_results(folder / RESULTS_FILE),
        recipe=read_recipe(folder / RECIPE_FILE),
    )
    check_together(folder, model, extractor, checkpoint.catalogue, checkpoint.users)
    return checkpoint
