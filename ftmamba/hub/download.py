"""Load a checkpoint from the Hub over a line that breaks off."""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ftmamba.hub.backoff import Backoff, Passing, keep_trying

logger = logging.getLogger(__name__)

ERROR_OF_CLIENT: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of every error of the HTTP library that the Hub's client uses, whichever it is."""

TRIES = 5
_NOT_TO_BE_REACHED = ("ConnectError", "ConnectTimeout")
"""The HTTP library's errors before there is any line that could break off."""


def download_checkpoint(
    repo_id: str, *, revision: str | None, token: str | None, patterns: Sequence[str]
) -> Path:
    """Return the folder of a repository's files, downloaded where they are not in the cache.

    The client goes on where a cut connection stopped it. What it gives up on, such as a Hub that
    answers 503, is tried again here; whole files are never fetched twice.

    Args:
        repo_id: such as `name/repo`.
        revision: branch, tag or commit; None for `main`.
        token: for a private repository.
        patterns: of the files to load.
    """

    def act() -> Path:
        return Path(
            snapshot_download(
                repo_id, revision=revision, token=token, allow_patterns=list(patterns)
            )
        )

    def tell(_error: Exception, seconds: float) -> None:
        logger.warning("loading %s broke off; it goes on in %.1f s", repo_id, seconds)

    backoff = Backoff(first=0.5, most=8)
    return keep_trying(act, _passing, tries=TRIES, backoff=backoff, tell=tell)


def _passing(error: Exception) -> Passing | None:
    """Say whether trying again may help; not where nothing can be reached at all."""
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
        return None
    from hub_cards.failures import hub_error, root_of

    root = root_of(error)
    if type(root).__name__ in _NOT_TO_BE_REACHED:
        return None
    return hub_error(root, "load")
