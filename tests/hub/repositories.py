"""Repositories of a loopback Hub: commits that never change, and references to them."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import unquote

PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
_SERIAL = count()

LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".ckpt", ".gz", ".h5", ".npy", ".npz", ".onnx", ".parquet", ".pickle",
    ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".zip",
)  # fmt: skip
"""What the `.gitattributes` of a new repository sends to the storage of large files."""

GIT_ATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_SUFFIXES)


def now() -> str:
    """Return the time as the Hub writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether it is kept in the storage of large files."""

    content: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_id(self) -> str:
        header = b"blob %d\0" % len(self.content)
        return hashlib.sha1(header + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_id


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    title: str
    files: Mapping[str, Blob]
    parent: str = ""
    message: str = ""
    author: str = ""
    date: str = field(default_factory=now)


@dataclass
class Repository:
    """A model, dataset or Space.

    Attributes:
        branches: name to commit id; a pull request n is the reference `refs/pr/n`.
        tags: name to commit id.
        pull_requests: number to title, author and status.
        settings: of a Space: variables, secrets, hardware.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    sdk: str = ""
    created: str = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, dict[str, str]] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = {".gitattributes": Blob(GIT_ATTRIBUTES.encode())}
        if self.repo_type == "space":
            card = f"---\ntitle: {self.repo_id.split('/')[-1]}\nsdk: {self.sdk}\n---\n"
            files["README.md"] = Blob(card.encode())
        self.branches["main"] = self.add(files, title="initial commit").oid

    @property
    def path(self) -> str:
        """What follows the Hub's address in the repository's own."""
        return f"{PREFIX[self.repo_type]}{self.repo_id}"

    @property
    def head(self) -> str:
        """The id of the newest commit of `main`."""
        return self.branches["main"]

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag, a pull request, an id or the start of one."""
        name = unquote(revision).removeprefix("refs/heads/")
        oid = self.branches.get(name) or self.tags.get(name) or name
        if oid not in self.commits and len(oid) >= 7:
            oid = next((known for known in self.commits if known.startswith(oid)), oid)
        return self.commits.get(oid)

    def add(self, files: Mapping[str, Blob], *, title: str, **facts: str) -> Commit:
        """Keep a new commit, to which no reference points yet."""
        text = f"{self.path} {next(_SERIAL)} {title} {sorted(files)}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, dict(files), **facts)
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """Return a commit and those before it, the newest first."""
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file."""
        commit = self.find(revision)
        if commit is None:
            raise KeyError(f"{self.path} has no revision {revision!r}")
        return {path: blob.content for path, blob in commit.files.items()}


@dataclass
class Store:
    """Everything a Hub keeps.

    Attributes:
        repositories: by path: `user/name`, `datasets/user/name`, `spaces/user/name`.
        uploads: large files by SHA-256, also those that no commit holds yet.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
