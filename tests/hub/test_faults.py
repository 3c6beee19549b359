"""What the loopback Hub is told to do wrong, it does wrong, and so many times."""

import time

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from tests.hub.accounts import TOKEN

REPO = "tester/things"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def api(own_hub, monkeypatch):
    client = own_hub.api()
    client.create_repo(REPO)
    client.upload_file(path_or_fileobj=CONTENT, path_in_repo="w.bin", repo_id=REPO)
    # What is tested is who tries again and where from, not how long it waits.
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return client


def download(hub, folder, token=TOKEN):
    path = hf_hub_download(REPO, "w.bin", endpoint=hub.endpoint, cache_dir=folder, token=token)
    return folder.__class__(path).read_bytes()


def test_a_status_comes_so_many_times_and_no_more(own_hub, api):
    fault = own_hub.faults.add(r"/api/models/", method="GET", status=500, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="500"):
            api.model_info(REPO)
    assert api.model_info(REPO).id == REPO
    assert fault.hits == 2
    assert [one.status for one in own_hub.requests.matching(rf"models/{REPO}$")] == [500, 500, 200]


def test_requests_are_let_through_before_a_fault(own_hub, api):
    own_hub.faults.add(r"/api/models/", skip=1, status=503)
    api.model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.model_info(REPO)


def test_too_many_requests_says_how_long_to_wait(own_hub, api, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    own_hub.faults.add(r"/preupload/", status=429, retry_after=7)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO)
    assert waited == [8.0]
    assert own_hub.files(REPO)["x.txt"] == b"x"


def test_a_download_that_is_cut_goes_on_where_it_stopped(own_hub, api, tmp_path, monkeypatch):
    # The client keeps whole pieces only, of 10 MiB unless told otherwise.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    own_hub.faults.add(r"/_files/", method="GET", cut_after=60_000)
    assert download(own_hub, tmp_path) == CONTENT
    asked = [one.headers.get("range") for one in own_hub.requests.matching("/_files/")]
    assert asked == [None, "bytes=60000-"]
    statuses = [one.status for one in own_hub.requests.matching("/_files/")]
    assert statuses == [200, 206]


def test_an_upload_that_is_cut_is_sent_again(own_hub, api):
    fault = own_hub.faults.add(r"/_upload/", cut_upload_after=1000)
    api.upload_file(path_or_fileobj=CONTENT[:-1], path_in_repo="v.bin", repo_id=REPO)
    assert fault.hits == 1
    assert own_hub.files(REPO)["v.bin"] == CONTENT[:-1]


def test_an_answer_can_be_lost_after_the_deed(own_hub, api):
    own_hub.faults.add(r"/commit/", lose_answer=True)
    with pytest.raises(Exception, match="disconnected without sending a response"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO)
    assert own_hub.files(REPO)["x.txt"] == b"x"


def test_a_body_can_be_slow(own_hub, api, tmp_path, monkeypatch):
    monkeypatch.undo()
    own_hub.faults.add(r"/_files/", pause_seconds=0.003)
    start = time.monotonic()
    assert download(own_hub, tmp_path) == CONTENT
    assert time.monotonic() - start > 0.003 * len(CONTENT) / 1024


def test_a_request_can_be_left_without_an_answer(own_hub, api, tmp_path):
    own_hub.faults.add(r"/resolve/", method="HEAD", hang=True)
    where = {"endpoint": own_hub.endpoint, "cache_dir": tmp_path}
    hf_hub_download(REPO, "w.bin", etag_timeout=0.2, **where)
    heads = own_hub.requests.matching("/resolve/", method="HEAD")
    assert [one.status for one in heads] == [0, 302]


def test_faults_can_be_taken_away(own_hub, api):
    own_hub.faults.add(r".*", status=500, times=99)
    own_hub.faults.clear()
    assert api.model_info(REPO).id == REPO
