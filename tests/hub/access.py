"""Who may see and change a repository, refused as the Hub refuses it."""

from .accounts import Account
from .messages import RefusedError, Request
from .repositories import Commit, Repository, Store

TYPE_OF = {"models": "model", "datasets": "dataset", "spaces": "space"}


def readable(store: Store, request: Request, plural: str, repo_id: str) -> Repository:
    """Return a repository that the request may read.

    A private one is as good as missing: 401 for nobody, 404 for somebody else.
    """
    folder = "" if plural == "models" else f"{plural}/"
    found = store.repositories.get(f"{folder}{repo_id}")
    if found is None or not may_read(found, request):
        raise RefusedError(404 if request.account else 401, "RepoNotFound", "Repository not found")
    return found


def may_read(repository: Repository, request: Request) -> bool:
    """Return whether a repository is public, or the request's own."""
    account = request.account
    return not repository.private or bool(account and account.owns(repository.repo_id))


def writable(store: Store, request: Request, plural: str, repo_id: str) -> Repository:
    """Return a repository that the request may change."""
    found = readable(store, request, plural, repo_id)
    account = writer(request)
    if not account.owns(found.repo_id):
        raise RefusedError(
            403, "", "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
        )
    return found


def writer(request: Request) -> Account:
    """Return the account of a request that has the right to write something."""
    if request.account is None:
        raise RefusedError(401, "", "Invalid username or password.")
    if not request.account.can_write:
        raise RefusedError(
            403, "", "Forbidden: you must use a write token to upload to a repository."
        )
    return request.account


def commit_of(repository: Repository, revision: str) -> Commit:
    """Return the commit of a revision."""
    found = repository.find(revision)
    if found is None:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return found
