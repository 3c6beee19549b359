"""One push, to the loopback Hub with the real client: what arrives, and what stays."""

import re
from dataclasses import replace
from functools import partial

import pytest
from safetensors.torch import load_file, save_file

from ftmamba.checkpoint import load_checkpoint, save_checkpoint
from ftmamba.hub import HubError
from hub_cards.contents import PublishedFile, list_contents, published_files
from hub_cards.push import Destination, push_checkpoint
from hub_cards.space import SpaceFacts, push_space
from tests.hub.server import READ_TOKEN, STRANGER_TOKEN
from tests.pushing.conftest import CARD

REPO = "tester/films"
NEEDED = {
    "config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.safetensors",
    "modeling_ftmamba.py", "network.py", "catalogue.safetensors", "README.md", "all_results.json",
    "recipe.yaml",
}  # fmt: skip


def test_what_is_pushed_is_a_checkpoint_and_nothing_else(own_hub, folder):
    pushed = push_checkpoint(folder, REPO, api=own_hub.api())
    files = own_hub.files(REPO)
    assert files.keys() >= NEEDED
    assert not any("/" in path for path in files)
    allowed = {one.name for one in published_files(folder)} | {".gitattributes"}
    assert set(files) == allowed
    kept = {"my_notes.py", "users.parquet", ".env", "events.out.tfevents"}
    assert not kept & files.keys()
    assert all(content != b"private" for content in files.values())
    for path in files.keys() - {".gitattributes", "README.md"}:
        if (folder / path).exists():
            assert files[path] == (folder / path).read_bytes(), path
    assert pushed.url == f"{own_hub.endpoint}/{REPO}/commit/{pushed.commit}"


def test_no_record_of_a_user_is_ever_sent_and_no_token_to_the_storage(own_hub, folder):
    assert (folder / "local" / "users.parquet").exists()
    push_checkpoint(folder, REPO, api=own_hub.api())
    local = [path.read_bytes() for path in (folder / "local").glob("*.*")]
    assert len(local) >= 4
    for request in own_hub.requests:
        assert b"local/" not in request.body
        assert not any(content == request.body for content in local)
        assert request.origin == "hub" or "authorization" not in request.headers


def test_neither_a_link_to_users_nor_a_folder_without_a_card_is_pushed(own_hub, folder):
    (folder / "catalogue.safetensors").unlink()
    (folder / "catalogue.safetensors").symlink_to(folder / "local" / "users.parquet")
    with pytest.raises(ValueError, match="links to local/"):
        push_checkpoint(folder, REPO, api=own_hub.api())
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks README\.md"):
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert not own_hub.requests


DAMAGE = {
    "model.safetensors": "truncated or no safetensors file",
    "preprocessor_config.json": "not a valid JSON file",
    "vocabularies.safetensors": "truncated or no safetensors file",
    "catalogue.safetensors": "truncated or no safetensors file",
}


@pytest.mark.parametrize(("name", "problem"), DAMAGE.items())
def test_a_damaged_file_is_refused_before_anything_is_sent(own_hub, folder, name, problem):
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    with pytest.raises(ValueError, match=rf"{name}.*{problem}"):
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert not own_hub.requests
    if name == "catalogue.safetensors":
        assert push_checkpoint(folder, REPO, with_catalogue=False, api=own_hub.api()).commit


def test_a_catalogue_of_other_weights_is_refused(own_hub, folder):
    weights = load_file(folder / "model.safetensors")
    weights = {name: one * 2 if one.is_floating_point() else one for name, one in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="embedded by other weights"):
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert not own_hub.requests


def test_what_is_pushed_can_be_loaded_and_again_sends_no_large_file(own_hub, folder, tmp_path):
    push_checkpoint(folder, REPO, api=own_hub.api())
    before = len(own_hub.requests.matching("/_upload/"))
    push_checkpoint(folder, REPO, api=own_hub.api())
    assert len(own_hub.requests.matching("/_upload/")) == before > 2
    arrived = own_hub.download(REPO, tmp_path / "arrived")
    assert list(load_checkpoint(arrived).catalogue.keys) == list(
        load_checkpoint(folder).catalogue.keys
    )


def test_the_catalogue_can_be_left_out_and_then_goes_from_the_hub(own_hub, folder):
    push_checkpoint(folder, REPO, api=own_hub.api())
    assert "catalogue.safetensors" in own_hub.files(REPO)
    push_checkpoint(folder, REPO, with_catalogue=False, api=own_hub.api())
    assert "catalogue.safetensors" not in own_hub.files(REPO)
    assert "model.safetensors" in own_hub.files(REPO)


def test_shards_take_the_place_of_one_file_and_the_other_way_round(own_hub, folder):
    for size in ("5GB", "10KB", "5GB"):
        save_checkpoint(folder, replace(load_checkpoint(folder), card=CARD), max_shard_size=size)
        push_checkpoint(folder, REPO, api=own_hub.api())
        found = {one for one in own_hub.files(REPO) if re.match(r"model[.-]", one)}
        assert found == {path.name for path in folder.glob("model[.-]*")}
        assert ("model.safetensors" in found) == (len(found) == 1) == (size == "5GB")


def test_the_examples_of_the_card_pin_the_commit_that_holds_the_files(own_hub, folder):
    pushed = push_checkpoint(folder, REPO, message="Epoch 3", api=own_hub.api())
    card = own_hub.files(REPO)["README.md"].decode()
    assert f'repo, revision = "{REPO}", "{pushed.commit}"' in card
    titles = [one.title for one in own_hub.repositories[REPO].history("main")]
    assert titles == [
        f"Pin the card's examples to {pushed.commit[:7]}",
        "Epoch 3",
        "initial commit",
    ]
    at_commit, at_head = own_hub.files(REPO, pushed.commit), own_hub.files(REPO)
    assert {path for path in at_head if at_head[path] != at_commit[path]} == {"README.md"}


def test_what_a_person_wrote_into_the_card_stays(own_hub, folder):
    api = own_hub.api()
    push_checkpoint(folder, REPO, api=api)
    edited = own_hub.files(REPO)["README.md"].decode().replace("# Films", "# Our films\n\nAsk Ada.")
    edited = edited.replace("license: apache-2.0", "license: mit")
    api.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("```python", "New.\n```python"))
    pushed = push_checkpoint(folder, REPO, api=api)
    found = own_hub.files(REPO)["README.md"].decode()
    assert "# Our films\n\nAsk Ada." in found
    assert "license: mit" in found
    assert "New.\n```python" in found
    assert pushed.commit in found


def test_an_edit_made_meanwhile_is_not_lost(own_hub, folder):
    api = own_hub.api()
    push_checkpoint(folder, REPO, api=api)
    real = api.create_commit

    def commit_after_somebody(*arguments, **options):
        card = own_hub.files(REPO)["README.md"] + b"\nBy hand.\n"
        own_hub.api().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)
        return real(*arguments, **options)

    api.create_commit = commit_after_somebody
    with pytest.raises(HubError, match="412") as caught:
        push_checkpoint(folder, REPO, api=api)
    assert caught.value.may_pass
    assert own_hub.files(REPO)["README.md"].endswith(b"\nBy hand.\n")


def test_a_branch_is_made_and_main_stays(own_hub, folder):
    pushed = push_checkpoint(folder, Destination(REPO, "checkpoints"), api=own_hub.api())
    assert set(own_hub.files(REPO)) == {".gitattributes"}
    assert own_hub.files(REPO, "checkpoints").keys() >= NEEDED
    assert own_hub.files(REPO, pushed.commit).keys() >= NEEDED


def test_a_pull_request_changes_nothing_until_it_is_merged(own_hub, folder):
    own_hub.api().create_repo(REPO)
    stranger = own_hub.api(STRANGER_TOKEN)
    pushed = push_checkpoint(folder, Destination(REPO, create_pr=True), api=stranger)
    assert pushed.url == f"{own_hub.endpoint}/{REPO}/discussions/1"
    assert set(own_hub.files(REPO)) == {".gitattributes"}
    proposed = own_hub.files(REPO, "refs/pr/1")
    assert proposed.keys() >= NEEDED
    assert pushed.commit.encode() in proposed["README.md"]


@pytest.mark.parametrize(
    ("token", "status", "remedy"),
    [
        (READ_TOKEN, 403, r"hf auth login.*--create_pr"),
        (STRANGER_TOKEN, 403, "--create_pr"),
        ("hf_nobodyknowsthistokenatall", 401, "hf auth login"),
    ],
)
def test_a_refused_token_is_told_with_its_remedy(own_hub, folder, token, status, remedy):
    with pytest.raises(HubError, match=rf"cannot push to '{REPO}'.*{remedy}") as caught:
        push_checkpoint(folder, REPO, api=own_hub.api(token))
    assert (caught.value.status, caught.value.may_pass) == (status, False)
    assert token not in str(caught.value)


@pytest.mark.parametrize("name", ["films", "me/films/x", "/films", "me/", "me/fi lms"])
def test_a_wrong_name_is_refused_before_anything_is_sent(own_hub, folder, name):
    for push in (partial(push_checkpoint, folder), partial(push_space, SpaceFacts("me/films"))):
        with pytest.raises(ValueError, match=f"must be 'user/name', got {name!r}"):
            push(name, api=own_hub.api())
    assert not own_hub.requests


def test_contents_are_listed_with_their_sizes(folder):
    files = [
        PublishedFile(one.name, b"\0" * 1_234_567 if one.name.startswith("catal") else one.content)
        for one in published_files(folder)
    ]
    lines = list_contents(files).splitlines()
    n_code = sum(one.name.endswith(".py") and one.name != "handler.py" for one in files)
    assert n_code > 3
    assert len(lines) == len(files) - n_code + 2
    assert lines[-2].startswith(f"{n_code} files of code (*.py)")
    (catalogue,) = [line for line in lines if line.startswith("catalogue.")]
    assert catalogue.split() == ["catalogue.safetensors", "1.2", "MB"]
    assert lines[-1].split()[:2] == [str(len(files)), "files"]
    assert not any("local" in line for line in lines)


def test_what_an_endpoint_needs_is_added(own_hub, folder):
    push_checkpoint(folder, REPO, api=own_hub.api())
    files = own_hub.files(REPO)
    assert b"class EndpointHandler" in files["handler.py"]
    lines = files["requirements.txt"].decode().splitlines()
    assert [line.split(">=")[0] for line in lines][:2] == ["torch", "transformers"]
    assert all(">=" in line for line in lines)
    assert not {"handler.py", "requirements.txt"} & {path.name for path in folder.iterdir()}


def test_a_handler_of_ones_own_is_pushed_and_an_endpoint_needs_the_catalogue(folder):
    (folder / "handler.py").write_text("class EndpointHandler: ...\n")
    by_name = {one.name: one for one in published_files(folder)}
    assert by_name["handler.py"].content == folder / "handler.py"
    (folder / "handler.py").unlink()
    names = {one.name for one in published_files(folder, with_catalogue=False)}
    assert not {"handler.py", "requirements.txt", "catalogue.safetensors"} & names
