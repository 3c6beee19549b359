"""Committing, as the Hub does it: ask how, send large files to the storage, then commit."""

import base64
import hashlib
import json
from typing import Any

from .access import commit_of, readable, writable, writer
from .messages import Answer, RefusedError, Request, json_answer
from .repositories import LFS_SUFFIXES, Blob, Repository, now
from .state import HubState

MOST_REGULAR_BYTES = 10 * 1024**2


def preupload(hub: HubState, request: Request, plural: str, repo_id: str, revision: str) -> Answer:
    """Say of each file whether it goes into the commit or to the storage of large files."""
    repository = _committable(hub, request, plural, repo_id, revision)
    known = commit_of(repository, revision).files
    files = []
    for one in request.json()["files"]:
        is_lfs = (
            one["size"] > MOST_REGULAR_BYTES
            or one["path"].endswith(LFS_SUFFIXES)
            or b"\0" in base64.b64decode(one.get("sample") or "")
        )
        mode = "lfs" if is_lfs else "regular"
        blob = known.get(one["path"])
        known_as = blob.etag if blob else None
        files.append(
            {"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known_as}
        )
    return json_answer({"files": files})


def lfs_batch(hub: HubState, request: Request, plural: str | None, repo_id: str) -> Answer:
    """Say where to put each large file; one that is known already needs no upload."""
    readable(hub.store, request, plural or "models", repo_id)
    writer(request)
    objects = []
    for one in request.json()["objects"]:
        answer = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.store.uploads:
            upload = {"href": f"{hub.storage}/_upload/{one['oid']}", "header": {}}
            verify = {"href": f"{hub.endpoint}/_verify", "header": {}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return json_answer({"transfer": "basic", "objects": objects})


def upload(hub: HubState, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise RefusedError(400, "", "The SHA-256 you specified did not match what we received.")
    hub.store.uploads[oid] = request.body
    return Answer(200)


def verify(hub: HubState, request: Request) -> Answer:
    values = request.json()
    if len(hub.store.uploads.get(values["oid"], b"")) != values["size"]:
        raise RefusedError(404, "", "the object was not uploaded in full")
    return json_answer({})


def commit(hub: HubState, request: Request, plural: str, repo_id: str, revision: str) -> Answer:
    """Apply the lines of a commit to a branch, or to a new pull request."""
    repository = _committable(hub, request, plural, repo_id, revision)
    head = commit_of(repository, revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, head.oid):
        raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines[1:]:
        _apply(files, line["key"], line["value"], hub.store.uploads)
    made = repository.add(
        files,
        title=header["summary"],
        message=header.get("description", ""),
        parent=head.oid,
        author=writer(request).name,
    )
    name = revision.removeprefix("refs/heads/")
    answer: dict[str, Any] = {"success": True, "commitOid": made.oid, "hookOutput": ""}
    answer["commitUrl"] = f"{hub.endpoint}/{repository.path}/commit/{made.oid}"
    if "create_pr" in request.query:
        number = open_pull_request(repository, made.title, writer(request).name)
        name = f"refs/pr/{number}"
        answer["pullRequestUrl"] = f"{hub.endpoint}/{repository.path}/discussions/{number}"
    elif name not in repository.branches:
        raise RefusedError(400, "", f"cannot commit to {name}: it is no branch")
    repository.branches[name] = made.oid
    return json_answer(answer)


def open_pull_request(repository: Repository, title: str, author: str) -> int:
    """Add a pull request at the head of `main`; return its number."""
    number = len(repository.pull_requests) + 1
    facts = {"title": title, "by": author, "status": "open", "createdAt": now()}
    repository.pull_requests[number] = facts
    repository.branches[f"refs/pr/{number}"] = repository.head
    return number


def discussions(hub: HubState, request: Request, plural: str, repo_id: str) -> Answer:
    """Open a pull request, or list them."""
    repository = readable(hub.store, request, plural, repo_id)
    if request.method == "POST":
        number = open_pull_request(repository, request.json()["title"], writer(request).name)
        return json_answer({"num": number})
    listed = [_discussion(repository, number) for number in repository.pull_requests]
    return json_answer({"discussions": listed, "count": len(listed), "start": 0})


def discussion(hub: HubState, request: Request, plural: str, repo_id: str, number: str) -> Answer:
    repository = readable(hub.store, request, plural, repo_id)
    if int(number) not in repository.pull_requests:
        raise RefusedError(404, "", "Not Found")
    return json_answer(_discussion(repository, int(number)))


def merge(hub: HubState, request: Request, plural: str, repo_id: str, number: str) -> Answer:
    repository = writable(hub.store, request, plural, repo_id)
    repository.branches["main"] = repository.branches[f"refs/pr/{number}"]
    repository.pull_requests[int(number)]["status"] = "merged"
    return json_answer({})


def _discussion(repository: Repository, number: int) -> dict[str, Any]:
    return {
        **repository.pull_requests[number],
        "num": number,
        "isPullRequest": True,
        "author": {"name": repository.pull_requests[number]["by"]},
        "repo": {"name": repository.repo_id, "type": repository.repo_type},
        "events": [],
        "filesWithConflicts": False,
        "changes": {"base": "refs/heads/main"},
    }


def _committable(
    hub: HubState, request: Request, plural: str, repo_id: str, revision: str
) -> Repository:
    """Return a repository that the request may commit to: with `create_pr` anybody may.

    To a pull request its author may.
    """
    repository = readable(hub.store, request, plural, repo_id)
    number = revision.removeprefix("refs/pr/")
    asked = repository.pull_requests.get(int(number)) if number.isdigit() else None
    if "create_pr" in request.query or (asked and asked["by"] == writer(request).name):
        writer(request)
        return repository
    return writable(hub.store, request, plural, repo_id)


def _apply(
    files: dict[str, Blob], key: str, value: dict[str, Any], uploads: dict[str, bytes]
) -> None:
    path = value["path"]
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in uploads:
            raise RefusedError(
                400, "", f"LFS pointer pointed to a file that does not exist: {path}"
            )
        files[path] = Blob(uploads[value["oid"]], is_lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        _delete(files, path, is_folder=key == "deletedFolder")
    else:
        raise RefusedError(400, "", f"unknown operation {key}")


def _delete(files: dict[str, Blob], path: str, *, is_folder: bool) -> None:
    inside = [
        name
        for name in files
        if (name.startswith(f"{path.rstrip('/')}/") if is_folder else name == path)
    ]
    if not inside:
        kind = "folder" if is_folder else "file"
        raise RefusedError(404, "EntryNotFound", f"A {kind} with this name doesn't exist: {path}")
    for name in inside:
        del files[name]
