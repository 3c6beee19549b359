"""Push a checkpoint that lies on the disk: list it, warn, push, try again where that may help."""

import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ftmamba.atomic import whole_folder_at
from ftmamba.hub.backoff import Backoff, keep_trying
from hub_cards.contents import list_contents, published_files
from hub_cards.failures import HubError
from hub_cards.personal import personal_columns, warning_of
from hub_cards.push import Destination, Pushed, push_checkpoint
from hub_cards.secrets import known_tokens

__all__ = ["Destination", "Selection", "look_over", "push_by_hand"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What of a checkpoint to push.

    Attributes:
        message: of the commit.
        with_catalogue: the items' keys, titles and embeddings too.
        with_training_state: what resuming needs too, where the folder holds it.
    """

    message: str = "Push an FT-Mamba checkpoint"
    with_catalogue: bool = True
    with_training_state: bool = False


def look_over(folder: Path, selection: Selection, *, api: HfApi) -> tuple[str, str]:
    """Return what would be pushed, with sizes, and a warning, empty where there is none.

    Raises:
        FileNotFoundError: the folder is no checkpoint.
        ValueError: a file must not be published.
    """
    folder = whole_folder_at(folder.expanduser().resolve())
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; give the output_dir of a finished run")
    files = published_files(
        folder,
        with_catalogue=selection.with_catalogue,
        with_training_state=selection.with_training_state,
        tokens=known_tokens(api.token),
    )
    found = personal_columns(folder)
    return list_contents(files), warning_of(found) if found else ""


def push_by_hand(
    folder: Path,
    destination: Destination,
    selection: Selection,
    *,
    api: HfApi,
    backoff: Backoff | None = None,
) -> Pushed:
    """Push a checkpoint, trying again while what fails may pass.

    Raises:
        HubError: the Hub refused, or could not be had in the end.
    """

    def act() -> Pushed:
        return push_checkpoint(
            whole_folder_at(folder.expanduser().resolve()),
            destination,
            message=selection.message,
            with_catalogue=selection.with_catalogue,
            with_training_state=selection.with_training_state,
            api=api,
        )

    return keep_trying(
        act,
        lambda error: error if isinstance(error, HubError) else None,
        backoff=backoff,
        tell=lambda error, seconds: logger.warning("%s (next try in %.0f s)", error, seconds),
    )
