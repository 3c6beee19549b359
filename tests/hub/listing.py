"""What the Hub says of a repository: facts, files, commits, references."""

from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml

from .access import TYPE_OF, commit_of, may_read, readable
from .messages import Answer, RefusedError, Request, json_answer
from .repositories import Blob, Commit, Repository
from .state import HubState

PAGE = 1000
EXPANDED_PAGE = 50


def list_repositories(hub: HubState, request: Request, plural: str) -> Answer:
    author, search = request.query.get("author", ""), request.query.get("search", "")
    return json_answer(
        [
            facts(repository, commit_of(repository, "main"), with_sizes=False)
            for repository in hub.store.repositories.values()
            if repository.repo_type == TYPE_OF[plural]
            and repository.repo_id.startswith(author)
            and search in repository.repo_id
            and may_read(repository, request)
        ]
    )


def describe(
    hub: HubState, request: Request, plural: str, repo_id: str, revision: str | None
) -> Answer:
    repository = readable(hub.store, request, plural, repo_id)
    commit = commit_of(repository, revision or "main")
    return json_answer(facts(repository, commit, with_sizes="blobs" in request.query))


def facts(repository: Repository, commit: Commit, *, with_sizes: bool) -> dict[str, Any]:
    """Return what `model_info` and its like read."""
    card = metadata(commit)
    siblings: list[dict[str, Any]] = [
        {"rfilename": path, **(entry(path, blob) if with_sizes else {})}
        for path, blob in sorted(commit.files.items())
    ]
    return {
        "_id": "0" * 24,
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit.oid,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "sdk": repository.sdk or None,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "siblings": siblings,
    }


def metadata(commit: Commit) -> dict[str, Any]:
    """Return the YAML at the head of a repository's card; nothing where it cannot be read."""
    card = commit.files.get("README.md", Blob(b"")).content.decode("utf-8", "replace")
    if not card.startswith("---\n"):
        return {}
    try:
        found = yaml.safe_load(card[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """Return a file as trees list it."""
    size = len(blob.content)
    lfs = {"oid": blob.sha256, "sha256": blob.sha256, "size": size, "pointerSize": 130}
    listed = {"type": "file", "path": path, "oid": blob.git_id, "size": size}
    return {**listed, **({"lfs": lfs} if blob.is_lfs else {})}


def tree(
    hub: HubState, request: Request, plural: str, repo_id: str, revision: str, under: str | None
) -> Answer:
    """List files and folders, so many a page."""
    repository = readable(hub.store, request, plural, repo_id)
    commit = commit_of(repository, revision)
    folder = unquote(under or "").strip("/")
    is_recursive = request.query.get("recursive", "").lower() in ("1", "true")
    listed = entries(commit, folder, is_recursive=is_recursive)
    if folder and not listed:
        raise RefusedError(404, "EntryNotFound", f"{folder} does not exist on {unquote(revision)}")
    is_expanded = request.query.get("expand", "").lower() in ("1", "true")
    if is_expanded:
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        listed = [{**one, "lastCommit": last, "securityFileStatus": None} for one in listed]
    size = hub.page_size or (EXPANDED_PAGE if is_expanded else PAGE)
    start = int(request.query.get("cursor", "0"))
    headers = {}
    if start + size < len(listed):
        asked = {**request.query, "cursor": str(start + size)}
        query = "&".join(f"{name}={quote(value)}" for name, value in asked.items())
        headers["Link"] = f'<{hub.endpoint}{request.path}?{query}>; rel="next"'
    return json_answer(listed[start : start + size], **headers)


def entries(commit: Commit, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    """Return files and folders below a folder, each folder before its files."""
    prefix = f"{folder}/" if folder else ""
    listed: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if is_recursive else min(len(parts), 2)):
            above = prefix + "/".join(parts[:depth])
            listed[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
        if is_recursive or len(parts) == 1:
            listed[path] = entry(path, blob)
    return list(listed.values())


def paths_info(hub: HubState, request: Request, plural: str, repo_id: str, revision: str) -> Answer:
    repository = readable(hub.store, request, plural, repo_id)
    commit = commit_of(repository, revision)
    if "json" in request.headers.get("content-type", ""):
        paths = request.json()["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    folders = {
        one["path"]: one
        for one in entries(commit, "", is_recursive=True)
        if one["type"] == "directory"
    }
    listed = [
        entry(path, commit.files[path]) if path in commit.files else folders[path]
        for path in paths
        if path in commit.files or path in folders
    ]
    return json_answer(listed)


def commits(hub: HubState, request: Request, plural: str, repo_id: str, revision: str) -> Answer:
    repository = readable(hub.store, request, plural, repo_id)
    commit_of(repository, revision)
    return json_answer(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author or "system"}],
            }
            for commit in repository.history(revision)
        ]
    )


def references(hub: HubState, request: Request, plural: str, repo_id: str) -> Answer:
    repository = readable(hub.store, request, plural, repo_id)
    found: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    found["pullRequests"] = []
    for name, oid in repository.branches.items():
        is_branch = not name.startswith("refs/")
        kind, ref = ("branches", f"refs/heads/{name}") if is_branch else ("pullRequests", name)
        found[kind].append({"name": name, "ref": ref, "targetCommit": oid})
    found["tags"] = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
        for name, oid in repository.tags.items()
    ]
    if "include_prs" not in request.query:
        del found["pullRequests"]
    return json_answer(found)
