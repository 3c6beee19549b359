"""Where the files of MovieLens-100K come from, and what they must hash to."""

import hashlib
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

OFFICIAL_ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
OFFICIAL_FILES = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}
RECBOLE_FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
_CONNECT_SECONDS = 5
_PIP_SECONDS = 300


def download(folder: Path) -> None:
    """Fill a folder from the first source that answers."""
    failures = []
    sources: tuple[Callable[[], Iterator[tuple[str, bytes, str]]], ...] = (
        _official_members,
        _recbole_members,
    )
    for source in sources:
        try:
            for name, content, digest in source():
                check_digest(content, digest, name)
                (folder / name).write_bytes(content)
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            failures.append(str(error))
        else:
            return
    raise FileNotFoundError(
        "MovieLens-100K could not be downloaded; unpack the archive yourself and name its folder. "
        f"Tried: {'; '.join(failures)}"
    )


def _official_members() -> Iterator[tuple[str, bytes, str]]:
    with tempfile.TemporaryFile() as archive:
        try:
            with urllib.request.urlopen(OFFICIAL_ARCHIVE, timeout=_CONNECT_SECONDS) as answer:
                archive.write(answer.read())
        except OSError as error:
            raise OSError(f"{OFFICIAL_ARCHIVE}: {error}") from error
        yield from _members(zipfile.ZipFile(archive), "ml-100k/", OFFICIAL_FILES)


def _recbole_members() -> Iterator[tuple[str, bytes, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, RECBOLE]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OSError(f"pip download {RECBOLE}: {reason}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            yield from _members(archive, "recbole/dataset_example/ml-100k/", RECBOLE_FILES)


def _members(
    archive: zipfile.ZipFile, prefix: str, files: Mapping[str, str]
) -> Iterator[tuple[str, bytes, str]]:
    for name, digest in files.items():
        yield name, archive.read(prefix + name), digest


def check_digest(content: bytes, digest: str, name: str) -> None:
    """Refuse a file whose SHA-256 is another than it must be."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"file '{name}' of MovieLens-100K is damaged: its SHA-256 must be {digest}, it is "
            f"{found}; delete it and fetch it again"
        )
