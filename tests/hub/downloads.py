"""Files on their way to a client: small ones from the Hub, large ones from its storage."""

import re

from .access import commit_of, readable
from .messages import Answer, RefusedError, Request
from .state import HubState


def resolve(
    hub: HubState, request: Request, plural: str | None, repo_id: str, revision: str, path: str
) -> Answer:
    """Send a small file, and for a large one the address in the storage."""
    repository = readable(hub.store, request, plural or "models", repo_id)
    commit = commit_of(repository, revision)
    blob = commit.files.get(path)
    if blob is None:
        raise RefusedError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.oid})
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if not blob.is_lfs:
        return part_of(blob.content, request, headers)
    headers["X-Linked-Etag"] = f'"{blob.sha256}"'
    headers["X-Linked-Size"] = str(len(blob.content))
    headers["Location"] = f"{hub.storage}/_files/{blob.sha256}/{path}"
    return Answer(302, b"", headers)


def stored(hub: HubState, request: Request, oid: str, _path: str) -> Answer:
    """Send a large file, whole or from where a client left off."""
    content = hub.store.uploads.get(oid)
    if content is None:
        raise RefusedError(404, "", "Not Found")
    return part_of(content, request, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def part_of(content: bytes, request: Request, headers: dict[str, str]) -> Answer:
    """Send the range that was asked for, or everything."""
    headers = {**headers, "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, content, headers)
    start, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if start > last:
        whole = {"Content-Range": f"bytes */{len(content)}"}
        raise RefusedError(416, "", "Range Not Satisfiable", **whole)
    headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
    return Answer(206, content[start : last + 1], headers)
