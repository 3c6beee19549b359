"""The loopback Hub, asked by the real client: making, changing and reading repositories."""

import hashlib

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.accounts import READ_TOKEN, STRANGER_TOKEN

REPO = "tester/things"


def add(api, files, message="add", repo_type=None, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(
        REPO, operations, commit_message=message, repo_type=repo_type, **options
    )


@pytest.fixture
def api(own_hub):
    client = own_hub.api()
    client.create_repo(REPO)
    return client


@pytest.mark.parametrize(
    ("repo_type", "path"),
    [("model", REPO), ("dataset", f"datasets/{REPO}"), ("space", f"spaces/{REPO}")],
)
def test_each_kind_of_repository_takes_small_and_large_files(own_hub, repo_type, path, tmp_path):
    api = own_hub.api()
    sdk = "gradio" if repo_type == "space" else None
    url = api.create_repo(REPO, repo_type=repo_type, space_sdk=sdk)
    assert (url.repo_id, url.repo_type) == (REPO, repo_type)
    large = bytes(range(256)) * 999
    add(api, {"a/notes.txt": b"hello", "weights.safetensors": large}, repo_type=repo_type)
    held = own_hub.files(path)
    assert (held["a/notes.txt"], held["weights.safetensors"]) == (b"hello", large)
    where = {"repo_type": repo_type, "endpoint": own_hub.endpoint, "cache_dir": tmp_path}
    folder = snapshot_download(REPO, **where)
    for name in ("a/notes.txt", "weights.safetensors"):
        assert (tmp_path.__class__(folder) / name).read_bytes() == held[name]
    info = api.repo_info(REPO, repo_type=repo_type, files_metadata=True)
    sizes = {one.rfilename: one.size for one in info.siblings}
    assert sizes["weights.safetensors"] == len(large)
    assert info.sha == own_hub.repositories[path].head
    assert {one.id for one in getattr(api, f"list_{repo_type}s")(author="tester")} == {REPO}


def test_what_exists_is_made_again_only_if_that_is_allowed(own_hub, api):
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    head = own_hub.repositories[REPO].head
    api.create_repo(REPO, exist_ok=True)
    assert own_hub.repositories[REPO].head == head
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    assert not own_hub.repositories


def test_a_large_file_is_sent_once_and_never_in_the_commit(own_hub, api):
    content = b"\1\0" * 5000
    add(api, {"one.bin": content})
    add(api, {"two.bin": content})
    assert len(own_hub.requests.matching("/_upload/", method="PUT")) == 1
    assert len(own_hub.requests.matching("/_verify")) == 1
    commits = own_hub.requests.matching("/commit/main")
    assert len(commits) == 2
    assert all(len(one.body) < 1000 for one in commits)
    assert own_hub.files(REPO)["two.bin"] == content


def test_a_commit_adds_copies_and_deletes(own_hub, api):
    add(api, {"a.txt": b"a", "b/c.txt": b"c", "b/d.txt": b"d", "e.bin": b"e" * 9})
    api.create_commit(
        REPO,
        [
            CommitOperationDelete("a.txt"),
            CommitOperationDelete("b/"),
            CommitOperationCopy("e.bin", "f.bin"),
        ],
        commit_message="tidy",
        commit_description="why",
    )
    assert set(own_hub.files(REPO)) == {".gitattributes", "e.bin", "f.bin"}
    first = api.list_repo_commits(REPO)[0]
    assert (first.title, first.message, first.authors) == ("tidy", "why", ["tester"])
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("none.txt")], commit_message="no")


def test_unchanged_files_make_no_commit(own_hub, api):
    add(api, {"a.txt": b"a", "b.bin": b"b"})
    head = own_hub.repositories[REPO].head
    assert add(api, {"a.txt": b"a", "b.bin": b"b"}).oid == head
    assert own_hub.repositories[REPO].head == head


def test_a_commit_on_an_old_parent_is_refused(own_hub, api):
    old = own_hub.repositories[REPO].head
    add(api, {"a.txt": b"a"}, parent_commit=old)
    with pytest.raises(HfHubHTTPError, match="412"):
        add(api, {"a.txt": b"b"}, parent_commit=old)
    assert own_hub.files(REPO)["a.txt"] == b"a"


def test_branches_and_tags_stay_where_they_were(own_hub, api):
    first = add(api, {"a.txt": b"1"}).oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="side/line")
    api.create_branch(REPO, branch="side/line", exist_ok=True)
    add(api, {"a.txt": b"2"})
    add(api, {"a.txt": b"3"}, revision="side/line")
    found = {name: own_hub.files(REPO, name)["a.txt"] for name in ("main", "v1", "side/line")}
    assert found == {"main": b"2", "v1": b"1", "side/line": b"3"}
    assert api.model_info(REPO, revision="v1").sha == first
    refs = api.list_repo_refs(REPO)
    assert {one.name for one in refs.branches} == {"main", "side/line"}
    assert [(one.name, one.target_commit) for one in refs.tags] == [("v1", first)]
    api.delete_branch(REPO, branch="side/line")
    api.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v1")


def test_a_pull_request_waits_until_it_is_merged(own_hub, api):
    commit = add(api, {"a.txt": b"new"}, create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert "a.txt" not in own_hub.files(REPO)
    assert own_hub.files(REPO, "refs/pr/1")["a.txt"] == b"new"
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [one.ref for one in refs.pull_requests] == ["refs/pr/1"]
    assert api.get_discussion_details(REPO, 1).status == "open"
    assert api.create_pull_request(REPO, "another").num == 2


def test_a_tree_comes_in_pages(own_hub, api):
    add(api, {f"folder/{number:02}.txt": b"x" for number in range(11)})
    own_hub.page_size = 4
    listed = list(api.list_repo_tree(REPO, recursive=True))
    paths = [".gitattributes", "folder", *(f"folder/{number:02}.txt" for number in range(11))]
    assert [one.path for one in listed] == paths
    assert len(own_hub.requests.matching("/tree/main")) == 4
    assert [one.path for one in api.list_repo_tree(REPO)] == paths[:2]
    assert len(list(api.list_repo_tree(REPO, "folder", expand=True))) == 11
    infos = api.get_paths_info(REPO, ["folder", "folder/03.txt", "none"])
    assert [one.path for one in infos] == ["folder", "folder/03.txt"]


def test_the_storage_gives_a_file_its_hash_and_sees_no_token(own_hub, api, tmp_path):
    content = bytes(range(256)) * 40
    add(api, {"w.safetensors": content})
    path = hf_hub_download(
        REPO, "w.safetensors", endpoint=own_hub.endpoint, cache_dir=tmp_path, token=api.token
    )
    assert tmp_path.__class__(path).resolve().name == hashlib.sha256(content).hexdigest()
    at_storage = [one for one in own_hub.requests if one.origin == "storage"]
    assert {one.method for one in at_storage} == {"PUT", "GET"}
    assert not any("authorization" in one.headers for one in at_storage)


def test_what_is_not_there_is_refused_by_its_name(own_hub, api, tmp_path):
    where = {"endpoint": own_hub.endpoint, "cache_dir": tmp_path}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "none.txt", **where)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, ".gitattributes", revision="none", **where)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/none", "a.txt", **where)


def test_tokens_decide_who_reads_and_who_writes(own_hub):
    api = own_hub.api()
    api.create_repo(REPO, private=True)
    add(api, {"a.txt": b"a"})
    assert api.whoami()["name"] == "tester"
    reader, stranger = own_hub.api(READ_TOKEN), own_hub.api(STRANGER_TOKEN)
    assert reader.model_info(REPO).private
    for refused in (stranger, own_hub.api(token=False)):
        with pytest.raises(RepositoryNotFoundError):
            refused.model_info(REPO)
        assert not refused.repo_exists(REPO)
    for client, repo_id in ((reader, "tester/other"), (stranger, "tester/other")):
        with pytest.raises(HfHubHTTPError, match="403"):
            client.create_repo(repo_id)
    for client in (reader, stranger):
        with pytest.raises(HfHubHTTPError):
            add(client, {"a.txt": b"b"})
    with pytest.raises(HfHubHTTPError, match="401"):
        own_hub.api("hf_wrong").model_info(REPO)
    api.update_repo_settings(REPO, visibility="public")
    assert stranger.model_info(REPO).private is False
    assert add(stranger, {"a.txt": b"b"}, create_pr=True).pr_num == 1
    assert own_hub.files(REPO)["a.txt"] == b"a"


def test_a_space_keeps_variables_and_hides_secrets(own_hub):
    api = own_hub.api()
    api.create_repo(REPO, repo_type="space", space_sdk="gradio")
    api.add_space_variable(REPO, "MODEL", "tester/films")
    api.add_space_secret(REPO, "HF_TOKEN", "hf_secret")
    assert api.get_space_variables(REPO)["MODEL"].value == "tester/films"
    assert list(api.get_space_secrets(REPO)) == ["HF_TOKEN"]
    assert api.get_space_runtime(REPO).stage == "RUNNING"
    assert api.space_info(REPO).sdk == "gradio"
    assert b"sdk: gradio" in own_hub.files(f"spaces/{REPO}")["README.md"]


def test_the_metadata_of_a_card_is_read(own_hub, api):
    card = b"---\npipeline_tag: tabular-regression\ntags: [a, b]\nlibrary_name: x\n---\n# Hi\n"
    add(api, {"README.md": card})
    info = api.model_info(REPO)
    assert (info.pipeline_tag, info.library_name) == ("tabular-regression", "x")
    assert info.card_data.tags == ["a", "b"]
