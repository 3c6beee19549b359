"""The loopback Hub answers the real client as the Hub does, and fails as it is asked to."""

import hashlib
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.server import READ_TOKEN, STRANGER_TOKEN

REPO = "tester/things"
LARGE = bytes(range(256)) * 400


def add(api, files, repo_type=None, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message="add", repo_type=repo_type, **options)


@pytest.fixture
def api(own_hub):
    client = own_hub.api()
    client.create_repo(REPO)
    return client


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_small_and_large_files_arrive_and_come_back(own_hub, repo_type, tmp_path):
    api = own_hub.api()
    api.create_repo(REPO, repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
    add(api, {"a/notes.txt": b"hello", "w.safetensors": LARGE}, repo_type=repo_type)
    path = REPO if repo_type == "model" else f"{repo_type}s/{REPO}"
    where = {"repo_type": repo_type, "endpoint": own_hub.endpoint, "cache_dir": tmp_path}
    folder = Path(snapshot_download(REPO, **where))
    for name in ("a/notes.txt", "w.safetensors"):
        assert (folder / name).read_bytes() == own_hub.files(path)[name]
    assert (folder / "w.safetensors").resolve().name == hashlib.sha256(LARGE).hexdigest()
    at_storage = [one for one in own_hub.requests if one.origin == "storage"]
    assert {one.method for one in at_storage} == {"PUT", "GET"}
    assert not any("authorization" in one.headers for one in at_storage)


def test_commits_keep_their_order_and_what_is_unchanged_makes_none(own_hub, api):
    old = own_hub.repositories[REPO].head
    first = add(api, {"a.txt": b"a", "b.bin": b"b"}, parent_commit=old).oid
    assert add(api, {"a.txt": b"a", "b.bin": b"b"}).oid == first
    with pytest.raises(HfHubHTTPError, match="412"):
        add(api, {"a.txt": b"b"}, parent_commit=old)
    api.create_branch(REPO, branch="side/line")
    api.create_branch(REPO, branch="side/line", exist_ok=True)
    api.create_commit(REPO, [CommitOperationDelete("a.txt")], commit_message="tidy")
    assert "a.txt" not in own_hub.files(REPO)
    assert own_hub.files(REPO, "side/line")["a.txt"] == own_hub.files(REPO, first)["a.txt"] == b"a"
    assert len(own_hub.requests.matching("/_upload/", method="PUT")) == 1


def test_what_is_not_there_is_refused_by_its_name(own_hub, api, tmp_path):
    where = {"endpoint": own_hub.endpoint, "cache_dir": tmp_path}
    for error, repo, name, revision in (
        (EntryNotFoundError, REPO, "none.txt", "main"),
        (RevisionNotFoundError, REPO, ".gitattributes", "none"),
        (RepositoryNotFoundError, "tester/none", "a.txt", "main"),
    ):
        with pytest.raises(error):
            hf_hub_download(repo, name, revision=revision, **where)


def test_tokens_decide_who_reads_and_who_writes(own_hub):
    api = own_hub.api()
    api.create_repo(REPO, private=True)
    reader, stranger = own_hub.api(READ_TOKEN), own_hub.api(STRANGER_TOKEN)
    assert reader.model_info(REPO).private
    for refused in (stranger, own_hub.api(token=False)):
        with pytest.raises(RepositoryNotFoundError):
            refused.model_info(REPO)
    for client in (reader, stranger):
        with pytest.raises(HfHubHTTPError, match="403"):
            client.create_repo("tester/other")
    with pytest.raises(HfHubHTTPError, match="401"):
        own_hub.api("hf_wrong").model_info(REPO)
    own_hub.repositories[REPO].private = False
    with pytest.raises(HfHubHTTPError, match="403"):
        add(stranger, {"a.txt": b"b"})
    assert add(stranger, {"a.txt": b"b"}, create_pr=True).pr_revision == "refs/pr/1"
    assert "a.txt" not in own_hub.files(REPO)
    assert own_hub.files(REPO, "refs/pr/1")["a.txt"] == b"b"


def test_faults_strike_so_many_times_and_no_more(own_hub, api, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    own_hub.faults.add(r"/api/models/", method="GET", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.model_info(REPO)
    assert api.model_info(REPO).id == REPO
    own_hub.faults.add(r"/preupload/", status=429, retry_after=7)
    own_hub.faults.add(r"/_upload/", cut_upload_after=1000)
    own_hub.faults.add(r"/commit/", lose_answer=True)
    with pytest.raises(Exception, match="disconnected without sending a response"):
        add(api, {"w.bin": LARGE})
    assert waited[0] >= 7
    assert own_hub.files(REPO)["w.bin"] == LARGE
    # The client keeps whole pieces only, of 10 MiB unless told otherwise.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    own_hub.faults.add(r"/_files/", method="GET", cut_after=60_000)
    path = hf_hub_download(REPO, "w.bin", endpoint=own_hub.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    found = [(one.headers.get("range"), one.status) for one in own_hub.requests.matching("/_files")]
    assert found == [(None, 200), ("bytes=60000-", 206)]
