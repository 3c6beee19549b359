"""A Hub on the loopback address: as much of its HTTP API as pushing and loading a model needs.

The client must run with `HF_ENDPOINT` at its address and `HF_HUB_DISABLE_XET=1`, both set before
`huggingface_hub` is imported.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
USER = "tester"
CREATED = "2024-01-01T00:00:00.000Z"
NOT_REGULAR = (".safetensors", ".parquet", ".bin")


@dataclass
class Repository:
    """The files of one model repository, by commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    head: str = "0" * 40

    def commit(self, lines: list[dict[str, Any]], uploads: dict[str, bytes]) -> str:
        """Apply the operations of a commit and return its id."""
        files = dict(self.commits[self.head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = uploads[value["oid"]]
        self.head = hashlib.sha1(f"{self.head} {sorted(files)}".encode()).hexdigest()
        self.commits[self.head] = files
        return self.head

    def find(self, revision: str) -> str | None:
        """Return the commit of a revision."""
        commit = self.head if revision == "main" else revision
        return commit if commit in self.commits else None


@dataclass
class LoopbackHub:
    """The repositories, the uploaded large files, and every request as `(method, path)`."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Return the files at the head of a repository."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.head]


class Handler(BaseHTTPRequestHandler):
    """Answers one request; the routes are at the end of the class."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, respond in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                respond(self, body, *match.groups())
                return
        self.hub.unknown.append((self.command, path))
        self.refuse("EntryNotFound", f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the parent looks for these names

    def send(
        self, content: object, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        is_json = not isinstance(content, bytes)
        data = json.dumps(content).encode() if is_json else content
        self.send_response(status)
        sent = {"Content-Type": "application/json" if is_json else "application/octet-stream"}
        for name, value in {**sent, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: str, message: str, status: int = 404) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send({"error": message}, status=status, headers=headers)

    def repository(self, repo_id: str) -> Repository | None:
        found = self.hub.repositories.get(repo_id)
        if found is None:
            self.refuse("RepoNotFound", "Repository not found")
        return found

    def may_write(self) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not allowed:
            self.refuse("", "Unauthorized", 401)
        return allowed

    def create(self, body: bytes) -> None:
        values = json.loads(body)
        repo_id = f"{values.get('organization') or USER}/{values['name']}"
        known = repo_id in self.hub.repositories
        if self.may_write():
            self.hub.repositories.setdefault(repo_id, Repository())
            url = f"{self.hub.url}/{repo_id}"
            self.send({"url": url, "name": repo_id}, status=409 if known else 200)

    def preupload(self, body: bytes, _repo_id: str) -> None:
        files = [
            {
                "path": file["path"],
                "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"].endswith(NOT_REGULAR) else "regular",
            }
            for file in json.loads(body)["files"]
        ]
        if self.may_write():
            self.send({"files": files})

    def batch(self, body: bytes, _repo_id: str) -> None:
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.hub.url}/_lfs/{file['oid']}"}}}
            for file in json.loads(body)["objects"]
        ]
        self.send({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.uploads[oid] = body
            self.send({})
        else:
            self.refuse("", "SHA-256 mismatch", 400)

    def commit(self, body: bytes, repo_id: str) -> None:
        repository = self.repository(repo_id)
        if repository is not None and self.may_write():
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            oid = repository.commit(lines, self.hub.uploads)
            url = f"{self.hub.url}/{repo_id}/commit/{oid}"
            self.send({"success": True, "commitOid": oid, "commitUrl": url})

    def describe(self, _body: bytes, repo_id: str, revision: str | None) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.find(revision or "main")
        if commit is None:
            self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        facts = {"id": repo_id, "sha": commit, "private": False, "siblings": siblings, "tags": []}
        self.send({**facts, "createdAt": CREATED, "lastModified": CREATED})

    def tree(self, _body: bytes, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        files = repository.commits[repository.find(revision) or repository.head]
        self.send(
            [
                {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
                for path, data in sorted(files.items())
            ]
        )

    def resolve(self, _body: bytes, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self.refuse("EntryNotFound", "Entry not found")
            return
        self.send(data, headers={"X-Repo-Commit": commit, "ETag": f'"{etag(data)}"'})

    REPO = r"([\w.-]+/[\w.-]+)"
    ROUTES = (
        ("POST", r"/api/repos/create", create),
        ("POST", r"/api/validate-yaml", lambda self, _: self.send({"errors": [], "warnings": []})),
        ("POST", rf"/api/models/{REPO}/preupload/main", preupload),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", batch),
        ("PUT", r"/_lfs/([0-9a-f]{64})", upload),
        ("POST", rf"/api/models/{REPO}/commit/main", commit),
        ("GET", rf"/api/models/{REPO}(?:/revision/([^/]+))?", describe),
        ("GET", rf"/api/models/{REPO}/tree/([^/]+)", tree),
        ("GET HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", resolve),
    )


def etag(data: bytes) -> str:
    """Return the id under which a client caches a file."""
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """Run a Hub on a free port of 127.0.0.1 until the block ends."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
