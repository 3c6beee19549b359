"""A checkpoint: all that recommending, and judging it, needs; see `checkpoint_folder`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ftmamba.atomic import whole_folder
from ftmamba.catalogue import Catalogue, load_catalogue, weights_fingerprint
from ftmamba.checkpoint_folder import (
    CARD_FILE,
    CATALOGUE_FILE,
    CONFIG_FILE,
    LOCAL_FOLDER,
    RECIPE_FILE,
    REPLACED_FILES,
    RESULTS_FILE,
    check_kind,
    check_nothing_lost,
    find_checkpoint,
)
from ftmamba.known_users import KnownUsers, load_known_users
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor


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
    """

    model: FTMambaTwoTowerModel
    extractor: FTMambaFeatureExtractor
    catalogue: Catalogue
    users: KnownUsers | None = None
    card: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an earlier one in the same folder is replaced whole or not at all.

    Whatever else lies in the folder (training state, logs) stays.

    Raises:
        ValueError: the catalogue was not made by the model's weights, or files of another kind
            in the folder would be lost.
        OSError: the disk is full, or the folder cannot be replaced.
    """
    _check_fingerprint(checkpoint, str(folder))
    folder = Path(folder).expanduser().resolve()
    check_nothing_lost(folder)
    with whole_folder(folder, owned=REPLACED_FILES) as new:
        with _no_progress_bar():
            checkpoint.model.save_pretrained(new)
        checkpoint.extractor.save_pretrained(new)
        checkpoint.catalogue.save(new / CATALOGUE_FILE)
        (new / CARD_FILE).write_text(checkpoint.card, encoding="utf-8")
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
        ValueError: a file is truncated, of another version, or belongs to other weights.
    """
    folder = find_checkpoint(folder_or_repo, revision=revision, token=token)
    check_kind(folder)
    model = _load_model(folder)
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    local = folder / LOCAL_FOLDER
    checkpoint = Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=load_catalogue(folder / CATALOGUE_FILE),
        users=load_known_users(local, key=extractor.user_key) if local.is_dir() else None,
        card=_text(folder / CARD_FILE),
        results=json.loads(_text(folder / RESULTS_FILE) or "{}"),
        recipe=yaml.safe_load(_text(folder / RECIPE_FILE)) or {},
    )
    _check_fingerprint(checkpoint, str(folder))
    return checkpoint


def _load_model(folder: Path) -> FTMambaTwoTowerModel:
    """Load the weights; any that are missing, superfluous or of another shape are an error."""
    try:
        with _no_progress_bar():
            loaded: Any = FTMambaTwoTowerModel.from_pretrained(folder, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {str(folder)!r} are truncated or no safetensors file ({error}); "
            "copy or train the checkpoint again"
        ) from error
    model: FTMambaTwoTowerModel
    model, facts = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if facts[kind]:
            names = ", ".join(sorted(str(key) for key in facts[kind])[:3])
            raise ValueError(
                f"the weights in {str(folder)!r} do not fit its {CONFIG_FILE}: "
                f"{kind.replace('_', ' ')} {names}; both must come from the same save"
            )
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence the bars of Transformers, which would end up among our own lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_fingerprint(checkpoint: Checkpoint, place: str) -> None:
    if checkpoint.catalogue.fingerprint != weights_fingerprint(checkpoint.model):
        raise ValueError(
            f"checkpoint {place!r}: the catalogue was embedded by other weights than the model's; "
            "make it anew with embed_catalogue(model, ...)"
        )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
