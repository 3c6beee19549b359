"""A Hub on the loopback address, for the real `huggingface_hub` client.

It keeps repositories with commits, branches, pull requests and large files, knows who may read and
write, and can be made to fail. A second server is the storage of large files: another host, where
no token belongs. A request that no route answers is recorded in `unknown`, and fails the test.

The client reads `HF_ENDPOINT` and `HF_HUB_DISABLE_XET` when it is imported: give a process of its
own `LoopbackHub.environment()`, or use `LoopbackHub.api()` in this one.
"""

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from huggingface_hub import HfApi

TOKEN = "hf_" + "WriteLoopback" * 2 + "12345678"
READ_TOKEN = "hf_" + "ReadsLoopback" * 2 + "12345678"
STRANGER_TOKEN = "hf_" + "OtherLoopback" * 2 + "12345678"
"""Tokens look like the Hub's own, so that what hides those hides these."""

ACCOUNTS = {
    TOKEN: ("tester", True),
    READ_TOKEN: ("tester", False),
    STRANGER_TOKEN: ("stranger", True),
}
"""Token to its user, who owns that namespace, and whether it may write."""

LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".npy", ".npz", ".parquet", ".pt", ".safetensors", ".zip")
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
_SERIAL = count()


@dataclass
class Request:
    """One request; `path` is still quoted, `status` is 0 where the connection was cut before."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    origin: str
    body: bytes = b""
    status: int = 0

    @property
    def account(self) -> tuple[str, bool] | None:
        sent = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        return ACCOUNTS.get(sent)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


class Requests(list[Request]):
    """Every request so far, in the order of arrival; grows while the Hub runs."""

    def matching(self, pattern: str, *, method: str = "") -> list[Request]:
        return [one for one in self if re.search(pattern, one.path) and method in ("", one.method)]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(content: object, *, status: int = 200, **headers: str) -> Answer:
    body = json.dumps(content).encode()
    return Answer(status, body, {"Content-Type": "application/json", **headers})


class RefusedError(Exception):
    """An answer that says no, with the headers by which the client tells the kinds apart."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = json_answer({"error": message}, status=status, **named)


@dataclass(frozen=True)
class Blob:
    content: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        header = b"blob %d\0" % len(self.content)
        return self.sha256 if self.is_lfs else hashlib.sha1(header + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, Blob]
    parent: str = ""


@dataclass
class Repository:
    """A model, data set or Space; a pull request n, of an author, is the branch `refs/pr/n`."""

    repo_id: str
    path: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pull_requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches["main"] = self.add({".gitattributes": Blob(b"")}, "initial commit").oid

    @property
    def head(self) -> str:
        return self.branches["main"]

    def find(self, revision: str) -> Commit:
        name = unquote(revision).removeprefix("refs/heads/")
        oid = self.branches.get(name, name)
        if oid not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add(self, files: Mapping[str, Blob], title: str, parent: str = "") -> Commit:
        """Keep a new commit, to which no branch points yet."""
        text = f"{self.path} {next(_SERIAL)} {title} {sorted(files)}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, dict(files), parent)
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """Return a commit and those before it, the newest first."""
        found = [self.find(revision)]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found

    def pull_request(self, author: str) -> int:
        self.pull_requests.append(author)
        number = len(self.pull_requests)
        self.branches[f"refs/pr/{number}"] = self.head
        return number


@dataclass
class Fault:
    """One thing that goes wrong for requests whose quoted path a pattern is found in.

    Attributes:
        times: how often it strikes before it is spent.
        status: answer this instead, without doing what was asked; 0: do it.
        retry_after: the header `Retry-After`, in seconds.
        cut_after: close the connection after so many bytes of the answer's body.
        cut_upload_after: close it after so many bytes of the request's body.
        lose_answer: do what was asked, then close the connection without a word.
    """

    pattern: str
    method: str = ""
    times: int = 1
    status: int = 0
    retry_after: int | None = None
    cut_after: int | None = None
    cut_upload_after: int | None = None
    lose_answer: bool = False
    hits: int = 0


class Faults(list[Fault]):
    """The faults of a Hub; the first that matches a request strikes."""

    def add(self, pattern: str, **options: Any) -> Fault:
        self.append(Fault(pattern, **options))
        return self[-1]

    def strike(self, request: Request) -> Fault | None:
        for fault in list(self):
            is_meant = fault.method in ("", request.method) and fault.hits < fault.times
            if is_meant and re.search(fault.pattern, request.path):
                fault.hits += 1
                return fault
        return None


class LoopbackHub:
    """A running Hub: its repositories by path, such as `datasets/user/name`, and its requests."""

    def __init__(self) -> None:
        self.endpoint = self.storage = ""
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults, self.requests = Faults(), Requests()
        self.unknown: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    def files(self, path: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository at a revision."""
        commit = self.repositories[path].find(revision)
        return {name: blob.content for name, blob in commit.files.items()}

    def download(self, path: str, folder: Path, revision: str = "main") -> Path:
        """Write the files of a repository into a folder; return it."""
        for name, content in self.files(path, revision).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """Return what turns the client of another process to this Hub."""
        named = {"HF_TOKEN": token} if token else {}
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {"HF_ENDPOINT": self.endpoint, **switches, **named}

    def api(self, token: str | bool = TOKEN) -> HfApi:
        """Return a client for this process; uploading large files needs Xet switched off."""
        return HfApi(endpoint=self.endpoint, token=token)

    # Who may see and change a repository, refused as the Hub refuses it.

    def readable(self, request: Request, plural: str | None, repo_id: str) -> Repository:
        """Return a repository; a private one is as good as missing for others."""
        found = self.repositories.get(f"{PREFIX[plural or 'models']}{repo_id}")
        owner = request.account and request.account[0] == repo_id.split("/")[0]
        if found is None or (found.private and not owner):
            status = 404 if request.account else 401
            raise RefusedError(status, "Repository not found", "RepoNotFound")
        return found

    def writable(self, request: Request, plural: str, repo_id: str) -> Repository:
        found = self.readable(request, plural, repo_id)
        if self.writer(request) != repo_id.split("/")[0]:
            raise RefusedError(403, "Forbidden: pass `create_pr=1` as a query parameter")
        return found

    def writer(self, request: Request) -> str:
        if request.account is None:
            raise RefusedError(401, "Invalid username or password.")
        if not request.account[1]:
            raise RefusedError(403, "Forbidden: you must use a write token to upload.")
        return request.account[0]

    def committable(self, request: Request, plural: str, repo_id: str, ref: str) -> Repository:
        """Return a repository to commit to; all may with `create_pr`, or to their pull request."""
        repository = self.readable(request, plural, repo_id)
        number = ref.removeprefix("refs/pr/")
        by = repository.pull_requests[int(number) - 1] if number.isdigit() else None
        if "create_pr" in request.query or by == self.writer(request):
            self.writer(request)
            return repository
        return self.writable(request, plural, repo_id)

    # What routes do.

    def whoami(self, request: Request) -> Answer:
        name, can_write = request.account or ("", False)
        auth = {"accessToken": {"displayName": "test", "role": "write" if can_write else "read"}}
        return json_answer({"type": "user", "name": name, "orgs": [], "auth": auth})

    def may_write(self, request: Request, plural: str, repo_id: str) -> Answer:
        self.writable(request, plural, repo_id)
        return json_answer({})

    def validate_card(self, _request: Request) -> Answer:
        return json_answer({"errors": [], "warnings": []})

    def create(self, request: Request) -> Answer:
        values = request.json()
        plural, owner = f"{values.get('type') or 'model'}s", values.get("organization")
        if request.account is None:
            raise RefusedError(401, "Invalid username or password.")
        if not request.account[1] or owner not in (None, request.account[0]):
            raise RefusedError(403, f'You may not create under the namespace "{owner}"')
        repo_id = f"{request.account[0]}/{values['name']}"
        path = f"{PREFIX[plural]}{repo_id}"
        answer = {"url": f"{self.endpoint}/{path}", "name": repo_id, "id": repo_id}
        if path in self.repositories:
            return json_answer({"error": "You already created this repo", **answer}, status=409)
        private = values.get("visibility") == "private" or bool(values.get("private"))
        self.repositories[path] = Repository(repo_id, path, private)
        return json_answer(answer)

    def branch(self, request: Request, plural: str, repo_id: str, name: str) -> Answer:
        repository = self.writable(request, plural, repo_id)
        if name in repository.branches:
            raise RefusedError(409, "Reference already exists")
        start = request.json().get("startingPoint") or "main"
        repository.branches[name] = repository.find(start).oid
        return json_answer({})

    def describe(self, request: Request, plural: str, repo_id: str, ref: str | None) -> Answer:
        repository = self.readable(request, plural, repo_id)
        commit = repository.find(ref or "main")
        siblings = [{"rfilename": one} for one in sorted(commit.files)]
        facts = {"id": repo_id, "sha": commit.oid, "private": repository.private, "tags": []}
        return json_answer({**facts, "siblings": siblings})

    def tree(self, request: Request, plural: str, repo_id: str, ref: str) -> Answer:
        commit, listed = self.readable(request, plural, repo_id).find(ref), []
        for path, blob in sorted(commit.files.items()):
            size = len(blob.content)
            listed.append({"type": "file", "path": path, "oid": blob.etag, "size": size})
            if blob.is_lfs:
                listed[-1]["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": 130}
        return json_answer(listed)

    def preupload(self, request: Request, plural: str, repo_id: str, ref: str) -> Answer:
        """Say of each file whether it goes into the commit or to the storage of large files."""
        known = self.committable(request, plural, repo_id, ref).find(ref).files
        files = []
        for one in request.json()["files"]:
            is_lfs = one["path"].endswith(LFS_SUFFIXES) or one["size"] > 10**7
            is_lfs |= b"\0" in base64.b64decode(one.get("sample") or "")
            oid = known[one["path"]].etag if one["path"] in known else None
            mode = "lfs" if is_lfs else "regular"
            files.append(
                {"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return json_answer({"files": files})

    def lfs_batch(self, request: Request, plural: str | None, repo_id: str) -> Answer:
        """Say where to put each large file; one that is known already needs no upload."""
        self.readable(request, plural, repo_id)
        self.writer(request)
        objects = []
        for one in request.json()["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.uploads:
                upload = {"href": f"{self.storage}/_upload/{one['oid']}", "header": {}}
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        return json_answer({"transfer": "basic", "objects": objects})

    def upload(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise RefusedError(400, "The SHA-256 did not match what we received.")
        self.uploads[oid] = request.body
        return Answer()

    def commit(self, request: Request, plural: str, repo_id: str, ref: str) -> Answer:
        """Apply the lines of a commit to a branch, or to a new pull request."""
        repository = self.committable(request, plural, repo_id, ref)
        head = repository.find(ref)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header, files = lines[0]["value"], dict(head.files)
        if header.get("parentCommit") not in (None, head.oid):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif kind == "lfsFile" and value["oid"] in self.uploads:
                files[value["path"]] = Blob(self.uploads[value["oid"]], is_lfs=True)
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise RefusedError(400, f"cannot apply {kind} to {value['path']}")
        made = repository.add(files, header["summary"], head.oid)
        url = f"{self.endpoint}/{repository.path}"
        answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
        if "create_pr" in request.query:
            number = repository.pull_request(self.writer(request))
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        repository.branches[ref.removeprefix("refs/heads/")] = made.oid
        return json_answer({**answer, "hookOutput": ""})

    def resolve(
        self, request: Request, plural: str | None, repo_id: str, ref: str, path: str
    ) -> Answer:
        """Send a small file, and for a large one the address in the storage."""
        commit = self.readable(request, plural, repo_id).find(ref)
        named = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise RefusedError(404, "Entry not found", "EntryNotFound", **named)
        blob = commit.files[path]
        headers = {**named, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.is_lfs:
            return self._part_of(blob.content, request, headers)
        headers["X-Linked-Etag"] = f'"{blob.sha256}"'
        headers["X-Linked-Size"] = str(len(blob.content))
        headers["Location"] = f"{self.storage}/_files/{blob.sha256}/{path}"
        return Answer(302, b"", headers)

    def stored(self, request: Request, oid: str, _path: str) -> Answer:
        headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        return self._part_of(self.uploads[oid], request, headers)

    def _part_of(self, content: bytes, request: Request, headers: dict[str, str]) -> Answer:
        """Send the range that was asked for, or everything."""
        headers = {**headers, "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Answer(200, content, headers)
        start, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        return Answer(206, content[start : last + 1], headers)


_REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
_FILES = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/whoami-v2", LoopbackHub.whoami),
    ("GET", r"/api/agent-harnesses", lambda *_: json_answer({}, status=404)),
    ("POST", r"/api/validate-yaml", LoopbackHub.validate_card),
    ("POST", r"/api/repos/create", LoopbackHub.create),
    ("GET", rf"{_REPO}/auth-check/write", LoopbackHub.may_write),
    ("POST", rf"{_REPO}/branch/([^/]+)", LoopbackHub.branch),
    ("GET", rf"{_REPO}/tree/([^/]+)", LoopbackHub.tree),
    ("POST", rf"{_REPO}/preupload/([^/]+)", LoopbackHub.preupload),
    ("POST", rf"{_REPO}/commit/([^/]+)", LoopbackHub.commit),
    ("GET", rf"{_REPO}(?:/revision/([^/]+))?", LoopbackHub.describe),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", LoopbackHub.lfs_batch),
    ("GET HEAD", rf"{_FILES}/(?:resolve|raw)/([^/]+)/(.+)", LoopbackHub.resolve),
    ("PUT", r"/_upload/([0-9a-f]{64})", LoopbackHub.upload),
    ("GET HEAD", r"/_files/([0-9a-f]{64})/(.+)", LoopbackHub.stored),
)


def respond(hub: LoopbackHub, request: Request) -> Answer:
    """Return the answer to a request; tests put their own in place of this function."""
    for methods, pattern, function in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods.split():
            groups = [group and unquote(group) for group in match.groups()]
            sent = request.headers.get("authorization")
            try:
                if sent and request.origin == "hub" and request.account is None:
                    raise RefusedError(401, "Invalid credentials in Authorization header")
                with hub.lock:
                    return function(hub, request, *groups)
            except RefusedError as refused:
                return refused.answer
    hub.unknown.append((request.method, request.path))
    return json_answer({"error": "no such route"}, status=404)


class Server(ThreadingHTTPServer):
    """Threads of a Hub; a client that hangs up is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault strike, and writes the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub
    origin: str

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def answer(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(self.command, parts.path, query, headers, self.origin)
        fault = self.hub.faults.strike(request) or Fault("")
        self.hub.requests.append(request)
        request.body = self._read_body(fault.cut_upload_after)
        if fault.cut_upload_after is not None:
            return self._hang_up()
        if fault.status:
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            found = json_answer({"error": "injected"}, status=fault.status, **wait)
        else:
            found = respond(self.hub, request)
            if fault.lose_answer:
                return self._hang_up()
        request.status = found.status
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body[: fault.cut_after])
            if fault.cut_after is not None and fault.cut_after < len(found.body):
                self.wfile.flush()
                self._hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - looked up by name

    def _read_body(self, limit: int | None) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size if limit is None else min(limit, size))

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """Run a Hub and its storage on free ports of 127.0.0.1 until the block ends."""
    hub = LoopbackHub()
    servers = [
        Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub, "origin": origin}))
        for origin in ("hub", "storage")
    ]
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    threads = [threading.Thread(target=one.serve_forever, args=(0.02,)) for one in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for one, thread in zip(servers, threads, strict=True):
            one.shutdown()
            thread.join()
            one.server_close()
