"""Push a checkpoint to the Hub: its published files, and nothing else of its folder."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.hf_api import ModelInfo

from hub_cards.card import pin_revision
from hub_cards.contents import CARD_FILE, STALE_IF_LEFT, PublishedFile, published_files
from hub_cards.failures import hub_error, is_of_the_hub
from hub_cards.merge import merge_card
from hub_cards.secrets import hide_tokens, known_tokens

MAIN = "main"
MESSAGE = "Push an FT-Mamba checkpoint"
MOST_SECONDS_OF_SILENCE = 120.0
"""The Hub's client would wait for ever; a run could not end."""


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: such as `name/repo`; made if it is not there.
        revision: branch; made from `main` if it is not there.
        private: of a repository that is made; one that exists keeps what it is.
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
                "`hf auth whoami` tells your user"
            )


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        commit: that holds the files, to pin with `revision=`.
        url: of that commit, or of the pull request.
    """

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
) -> Pushed:
    """Push a checkpoint's published files, making the repository if need be.

    One commit holds them all. A second one follows where the card has an example to pin, for no
    commit can name itself. What a person wrote into the card on the Hub stays (`merge_card`).

    Args:
        folder: of the checkpoint.
        destination: where to; a text is the repository's name.
        message: of the commit.
        with_catalogue: the items' keys, titles and embeddings too.
        with_training_state: what resuming needs too, where the folder holds it.
        api: client to use; the default talks to huggingface.co with the token of `hf auth login`.

    Raises:
        FileNotFoundError: the folder lacks a file that a checkpoint needs.
        ValueError: a file must not be published, or the repository's name is none.
        HubError: the Hub refused or could not be reached; says whether waiting may help.
    """
    if isinstance(destination, str):
        destination = Destination(destination)
    api = api or HfApi()
    tokens = known_tokens(api.token)
    files = published_files(
        Path(folder),
        with_catalogue=with_catalogue,
        with_training_state=with_training_state,
        tokens=tokens,
    )
    with told_without(tokens, f"push to {destination.repo_id!r}"):
        prepare(destination, api)
        head = api.model_info(destination.repo_id, revision=destination.revision)
        card = _card(files, head, api)
        return _commit(
            files, card, destination, message=hide_tokens(message, tokens), head=head, api=api
        )


def prepare(destination: Destination, api: HfApi) -> None:
    """Make the repository and the branch where they are not there yet.

    A pull request makes neither: whoever opens one may change nothing else.
    """
    session = get_session()
    if session.timeout.read is None:
        session.timeout = MOST_SECONDS_OF_SILENCE
    repo_id, revision = destination.repo_id, destination.revision
    if destination.create_pr:
        return
    api.create_repo(repo_id, private=destination.private or None, exist_ok=True)
    if revision != MAIN and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


@contextmanager
def told_without(tokens: Sequence[str], doing: str) -> Iterator[None]:
    """Turn errors of the Hub's client into `HubError`, which tells no token."""
    try:
        yield
    except Exception as error:
        if not is_of_the_hub(error) and str(error) == hide_tokens(str(error), tokens):
            raise
        # Not `from error`: its text, its request and its answer may hold the token.
        raise hub_error(error, doing, tokens) from None


def _commit(
    files: Sequence[PublishedFile],
    card: str,
    destination: Destination,
    *,
    message: str,
    head: ModelInfo,
    api: HfApi,
) -> Pushed:
    """Commit the files and the card on top of what `head` says, or fail if more has come since."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(one.name, one.content) for one in files if one.name != CARD_FILE
    ]
    operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    operations += [CommitOperationDelete(name) for name in _stale(files, head)]
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


def _card(files: Sequence[PublishedFile], head: ModelInfo, api: HfApi) -> str:
    generated = next(one for one in files if one.name == CARD_FILE).read_text()
    if CARD_FILE not in _names(head):
        return generated
    with TemporaryDirectory() as cache:
        path = api.hf_hub_download(head.id, CARD_FILE, revision=head.sha, cache_dir=cache)
        return merge_card(generated, Path(path).read_text(encoding="utf-8"))


def _stale(files: Sequence[PublishedFile], head: ModelInfo) -> list[str]:
    """Return what an earlier push left that would contradict this one."""
    kept = {one.name for one in files}
    return [
        name
        for name in _names(head)
        if name not in kept and any(fnmatch(name, pattern) for pattern in STALE_IF_LEFT)
    ]


def _names(head: ModelInfo) -> list[str]:
    return [one.rfilename for one in head.siblings or ()]
