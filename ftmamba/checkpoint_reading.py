"""Reading the parts of a checkpoint that a stranger may have made, each by itself and together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers.utils import logging as transformers_logging

from ftmamba.checkpoint_folder import CARD_FILE, CATALOGUE_FILE, CONFIG_FILE, LOCAL_FOLDER
from ftmamba.known_users import KnownUsers
from modeling_ftmamba.catalogue_file import Catalogue, check_records, weights_fingerprint
from modeling_ftmamba.checked_files import AGAIN, check_file, damaged, read_json, shown
from modeling_ftmamba.checked_weights import load_weights, network_of, weight_files
from modeling_ftmamba.configuration_ftmamba import TOWERS, FTMambaConfig
from modeling_ftmamba.network import TwoTowers
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

if TYPE_CHECKING:
    from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

MOST_CARD_BYTES = 2**22
MOST_RECIPE_BYTES = 2**16


def read_model(folder: Path) -> "FTMambaTwoTowerModel":
    """Read the model as one of Transformers', which can be trained and saved."""
    from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

    with no_progress_bar():
        model: FTMambaTwoTowerModel = FTMambaTwoTowerModel.from_pretrained(folder)
    return model


def read_towers(folder: Path) -> TwoTowers:
    """Read the model as a network that embeds; its weights stay in the file until looked at."""
    config = FTMambaConfig.from_pretrained(folder)
    network = network_of(config, TwoTowers, folder / CONFIG_FILE)
    load_weights(network, weight_files(lambda name: _existing(folder / name), str(folder)))
    if isinstance(config.dtype, torch.dtype):
        network.to(dtype=config.dtype)
    network.train(False)
    return network


def read_text(path: Path, most_bytes: int) -> str:
    """Read a text file; an absent one is empty.

    Raises:
        ValueError: it is too large, or no UTF-8.
    """
    if not path.exists():
        return ""
    check_file(path, most_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"is no UTF-8 ({error})") from None


def read_card(folder: Path) -> str:
    """Read the model card."""
    return read_text(folder / CARD_FILE, MOST_CARD_BYTES)


def read_results(path: Path) -> dict[str, Any]:
    """Read the figures of an evaluation; an absent file holds none."""
    return read_json(path) if path.exists() else {}


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases, of which a short text can make a long one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which is not allowed here")
        return super().compose_node(parent, index)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe of a run; an absent file holds none.

    Raises:
        ValueError: it is too large, no YAML, or no mapping.
    """
    text = read_text(path, MOST_RECIPE_BYTES)
    try:
        # The loader is a safe one: it makes texts, numbers, lists and mappings.
        recipe = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise damaged(path, f"is no YAML that a recipe may be ({text:.200})") from None
    if not isinstance(recipe, dict | None):
        raise damaged(path, f"must be a mapping, got {shown(recipe)}")
    return recipe or {}


def check_together(
    folder: Path,
    model: Any,
    extractor: FTMambaFeatureExtractor,
    catalogue: Catalogue,
    users: KnownUsers | None,
) -> None:
    """Check the parts of a checkpoint against each other.

    Raises:
        ValueError: they are not of one save, or would take each other beyond their ends.
    """
    for tower in TOWERS:
        columns = model.config.tower(tower).parsed_columns()
        if tuple(columns) != extractor.columns(tower):
            raise damaged(
                folder / CONFIG_FILE,
                f"has other {tower} columns than the preprocessor_config.json beside it",
            )
    path = folder / CATALOGUE_FILE
    width = catalogue.embeddings.shape[1]
    if width != model.config.projection_size:
        raise damaged(
            path, f"holds embeddings of width {width}, the model's {model.config.projection_size}"
        )
    check_records(catalogue, extractor.columns("item"), slice(None))
    check_fingerprint(catalogue, model, str(folder))
    temperature = float(model.temperature.detach())
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"the weights in {str(folder)!r} make a temperature {temperature}; {AGAIN}"
        )
    if users is not None and not users.taken_from(len(catalogue)):
        raise ValueError(
            f"the known users in {str(folder)!r} have seen items that the catalogue of "
            f"{len(catalogue)} has not; {AGAIN}, or delete {LOCAL_FOLDER}/"
        )


def check_fingerprint(catalogue: Catalogue, model: Any, place: str) -> None:
    """Check that a model's weights made the catalogue.

    Raises:
        ValueError: they did not.
    """
    if catalogue.fingerprint != weights_fingerprint(model):
        raise ValueError(
            f"checkpoint {place!r}: the catalogue was embedded by other weights than the model's; "
            "make it anew with embed_catalogue(model, ...)"
        )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Silence the bars of Transformers, which would end up among our own lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _existing(path: Path) -> Path | None:
    return path if path.exists() or path.is_symlink() else None
