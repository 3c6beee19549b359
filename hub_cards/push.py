"""Push a checkpoint to the Hub: its published files, and nothing else of its folder.

`huggingface_hub.CommitScheduler` and `upload_folder` push folders as they are; here the files are
chosen, the card is merged with the one that is there, and a commit that came meanwhile is kept.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from ftmamba.atomic import whole_folder_at
from ftmamba.checkpoint import CARD_FILE
from ftmamba.hub import HubError, hide_tokens, hub_error, is_of_the_hub, keep_trying, known_tokens
from hub_cards.card import pin_revision
from hub_cards.contents import STALE_IF_LEFT, PublishedFile, published_files
from hub_cards.merge import merge_card

logger = logging.getLogger(__name__)

MAIN = "main"
MESSAGE = "Push an FT-Mamba checkpoint"
READ_TIMEOUT_SECONDS = 120.0
"""The Hub's client has none; a run could not end."""
SECONDS_TO_ASK = 10.0


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: such as `name/repo`; made if it does not exist.
        revision: branch; made from `main` if it does not exist.
        private: for a repository that is made; one that exists stays as it is.
        create_pr: open a pull request on a repository that exists, instead of changing the branch.
    """

    repo_id: str
    revision: str = MAIN
    private: bool = False
    create_pr: bool = False

    def __post_init__(self) -> None:
        if hide_tokens(self.repo_id, known_tokens()) != self.repo_id:
            raise ValueError(
                "the repository's name holds an access token; give a name such as 'me/films', and "
                "the token in HF_TOKEN"
            )
        if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", self.repo_id):
            raise ValueError(
                f"a repository's name must be 'user/name', got {self.repo_id!r}; "
                "`hf auth whoami` shows your user"
            )


@dataclass(frozen=True)
class Pushed:
    """The commit that holds the files, and the address of it or of the pull request."""

    commit: str
    url: str


def push_checkpoint(
    folder: str | Path,
    destination: Destination | str,
    *,
    message: str = MESSAGE,
    with_catalogue: bool = True,
    with_training_state: bool = False,
    api: HfApi | None = None,
    tries: int = 1,
) -> Pushed:
    """Push a checkpoint's published files, making the repository if need be.

    One commit holds them all. A second one follows where the card has an example to pin, for no
    commit can name itself. What a person wrote into the card on the Hub stays (`merge_card`).

    Args:
        folder: of the checkpoint.
        destination: where to push; a text is the repository's name.
        message: of the commit.
        with_catalogue: see `published_files`, whose errors are raised too.
        with_training_state: likewise.
        api: client to use; the default talks to huggingface.co with the token of `hf auth login`.
        tries: how often to try while what fails may pass.

    Raises:
        ValueError: the repository's name is wrong.
        HubError: the Hub refused or could not be reached; says whether waiting may help.
    """
    if isinstance(destination, str):
        destination = Destination(destination)
    to, client = destination, api or HfApi()
    folder = Path(folder).expanduser().resolve()

    def push() -> Pushed:
        tokens = known_tokens(client.token)
        files = published_files(
            whole_folder_at(folder),
            with_catalogue=with_catalogue,
            with_training_state=with_training_state,
            tokens=tokens,
        )
        with hub_errors(f"push to {to.repo_id!r}", tokens):
            prepare(to, client)
            return _commit(files, to, hide_tokens(message, tokens), client)

    return keep_trying(
        push,
        lambda error: error if isinstance(error, HubError) else None,
        tries=tries,
        report=lambda error, wait: logger.warning("%s (next try in %.0f s)", error, wait),
    )


def prepare(destination: Destination, api: HfApi) -> None:
    """Make the repository and the branch where they do not exist.

    A pull request makes neither: its author may not be allowed to.
    """
    session = get_session()
    if session.timeout.read is None:
        session.timeout = READ_TIMEOUT_SECONDS
    repo_id, revision = destination.repo_id, destination.revision
    if destination.create_pr:
        return
    api.create_repo(repo_id, private=destination.private or None, exist_ok=True)
    if revision != MAIN and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def check_rights(destination: Destination, api: HfApi) -> None:
    """Ask whether the token may write to the repository, or make it where it does not exist.

    Nothing is made. What a fine-grained token may make is not known before it tries.

    Raises:
        HubError: it may not, or the Hub does not answer within seconds.
    """
    session, owner = get_session(), destination.repo_id.partition("/")[0]
    usual, session.timeout = session.timeout, SECONDS_TO_ASK
    try:
        with hub_errors(f"push to {destination.repo_id!r}", known_tokens(api.token)):
            try:
                api.auth_check(destination.repo_id, write=True)
            except RepositoryNotFoundError:
                about = api.whoami()
                role = about.get("auth", {}).get("accessToken", {}).get("role")
                names = [about["name"], *(one["name"] for one in about.get("orgs", ()))]
                if role == "read" or owner not in names:
                    raise
    finally:
        session.timeout = usual


@contextmanager
def hub_errors(action: str, tokens: Sequence[str]) -> Iterator[None]:
    """Turn errors of the Hub's client into `HubError`, which holds no token."""
    try:
        yield
    except Exception as error:
        if not is_of_the_hub(error) and str(error) == hide_tokens(str(error), tokens):
            raise
        # Not `from error`: its text, its request and its answer may hold the token.
        raise hub_error(error, action, tokens) from None


def _commit(
    files: Sequence[PublishedFile], destination: Destination, message: str, api: HfApi
) -> Pushed:
    """Commit the files on top of the branch, or fail if another commit comes in between."""
    head = api.model_info(destination.repo_id, revision=destination.revision)
    there = [one.rfilename for one in head.siblings or ()]
    card = next(one for one in files if one.name == CARD_FILE).read_bytes().decode()
    if CARD_FILE in there:
        card = merge_card(card, _published_card(head, api))
    # Not the folder that it was made in, which the first commit would show for good.
    card = pin_revision(card, destination.repo_id, destination.revision)
    kept = {one.name for one in files}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(one.name, one.content) for one in files if one.name != CARD_FILE
    ]
    operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    operations += [
        CommitOperationDelete(name)
        for name in there
        if name not in kept and any(fnmatch(name, pattern) for pattern in STALE_IF_LEFT)
    ]
    made = api.create_commit(
        destination.repo_id,
        operations,
        commit_message=message,
        revision=destination.revision,
        create_pr=destination.create_pr,
        parent_commit=head.sha,
    )
    pinned = pin_revision(card, destination.repo_id, made.oid)
    if pinned != card:
        api.create_commit(
            destination.repo_id,
            [CommitOperationAdd(CARD_FILE, pinned.encode())],
            commit_message=f"Pin the card's examples to {made.oid[:7]}",
            revision=made.pr_revision or destination.revision,
            parent_commit=made.oid,
        )
    return Pushed(made.oid, made.pr_url or made.commit_url)


def _published_card(head: ModelInfo, api: HfApi) -> str:
    with TemporaryDirectory() as cache:
        path = api.hf_hub_download(head.id, CARD_FILE, revision=head.sha, cache_dir=cache)
        return Path(path).read_text(encoding="utf-8")
