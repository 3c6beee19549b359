"""An access token is nowhere: not on the Hub, not in a log, not in an error."""

import dataclasses
import logging
import traceback

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from ftmamba.__main__ import main as command_line
from ftmamba.hub import HIDDEN, HubError, hide_tokens
from hub_cards.contents import published_files
from hub_cards.push import Destination, push_checkpoint
from hub_cards.training_push import tokens_hidden_in_logs
from modeling_ftmamba.catalogue import load_catalogue
from tests.hub.server import READ_TOKEN, TOKEN, json_answer

REPO = "tester/films"
TEXTS = ["README.md", "recipe.yaml", "all_results.json", "network.py"]


def test_texts_and_messages_are_pushed_without_the_token_and_that_is_said(own_hub, folder, caplog):
    recipe = {"seed": 7, "card": {"title": f"of {TOKEN}"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in TEXTS:
        with (folder / name).open("a") as file:
            file.write(f"\n# {TOKEN}\n")
    push_checkpoint(folder, REPO, message=f"with {TOKEN}", api=own_hub.api())
    for name in TEXTS:
        assert TOKEN in (folder / name).read_text()
        assert f"{HIDDEN}\n" in own_hub.files(REPO)[name].decode()
        assert f"{name} held an access token" in caplog.text
    titles = [one.title for one in own_hub.repositories[REPO].commits.values()]
    assert f"with {HIDDEN}" in titles
    assert not any(TOKEN in text for text in (caplog.text, *titles))
    assert not any(TOKEN.encode() in request.body for request in own_hub.requests)


def test_other_tokens_and_passwords_in_addresses_are_hidden_too(own_hub, folder):
    secrets = [READ_TOKEN, "me:hunter22@", "hf_oauth_eyJhbGciOiJFZERTQSJ9.abcdefghijk"]
    text = f"{READ_TOKEN} https://{secrets[1]}data.example/users.csv {secrets[2]}\n"
    with (folder / "README.md").open("a") as file:
        file.write(text)
    push_checkpoint(folder, REPO, api=own_hub.api())
    pushed = own_hub.files(REPO)["README.md"].decode()
    assert not any(secret in pushed for secret in secrets)
    assert f"{HIDDEN} https://{HIDDEN}@data.example/users.csv {HIDDEN}\n" in pushed


def test_words_that_look_a_little_like_tokens_stay():
    text = "hf_hub_download from hf_xet; scheme://host:80/path@x; hf_1234; a: b@c.d"
    assert hide_tokens(text) == text


@pytest.mark.parametrize("name", ["catalogue.safetensors", "vocabularies.safetensors"])
def test_a_token_among_the_values_stops_the_push(own_hub, folder, name):
    values = np.frombuffer(f"u1 {TOKEN} u2".encode(), dtype=np.uint8)
    save_file({"bytes": values}, folder / name)
    with pytest.raises(
        ValueError, match=rf"cannot push {name}: it holds your access token"
    ) as caught:
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert TOKEN not in str(caught.value)
    assert not own_hub.requests


def test_a_repository_named_like_a_token_is_refused_without_repeating_it():
    for name in (TOKEN, f"me/{TOKEN}"):
        with pytest.raises(ValueError, match="holds an access token") as caught:
            Destination(name)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_an_answer_that_repeats_the_token_is_told_without_it(own_hub, folder, status, monkeypatch):
    def say_it(_hub, request):
        sent = request.headers["authorization"]
        headers = {"X-Error-Message": f"no: {sent}", "X-Request-Id": TOKEN}
        return json_answer({"error": f"your header was {sent}"}, status=status, **headers)

    monkeypatch.setattr("tests.hub.server.respond", say_it)
    with pytest.raises(HubError) as caught:
        push_checkpoint(folder, REPO, api=own_hub.api())
    said = "".join(traceback.format_exception(caught.value))
    assert "cannot push to 'tester/films'" in said
    assert TOKEN not in said
    assert own_hub.requests


def test_no_log_record_holds_it(caplog):
    log, of_client = logging.getLogger("ftmamba.x"), logging.getLogger("huggingface_hub.y")
    with tokens_hidden_in_logs(TOKEN):
        log.warning("sent %s", TOKEN)
        of_client.warning("Bearer %s", "abcdefghij")
        log.warning("nothing to hide: %d", 3)
        try:
            raise ValueError(f"bad {TOKEN}")
        except ValueError:
            log.exception("failed")
    assert TOKEN not in caplog.text
    assert "abcdefghij" not in caplog.text
    assert caplog.text.count(HIDDEN) == 3
    assert "nothing to hide: 3" in caplog.text


def test_a_recipe_that_holds_one_is_refused(train, argv, here, capsys):
    flags = ["--users", f"https://me:{TOKEN}@data.example/users.csv"]
    assert train([*argv, *flags]) == 2
    said = capsys.readouterr().err
    assert "data.users of the recipe holds an access token, and recipes are published" in said
    assert TOKEN not in said
    assert train([*argv, "--hub_private", TOKEN]) == 2
    assert f"hub_private must be true or false, got '{HIDDEN}'" in capsys.readouterr().err


def test_a_whole_run_with_a_hub_that_repeats_it_never_tells_it(
    train, argv, here, quick, caplog, capfd, monkeypatch, tmp_path
):
    refuse = json_answer({"error": f"Bearer {TOKEN}"}, status=500, **{"X-Error-Message": TOKEN})
    monkeypatch.setattr("tests.hub.server.respond", lambda *_: refuse)
    flags = ["--checkpointing_steps", "epoch", "--hub_strategy", "every_save"]
    assert train([*argv, *flags, "--hub_patience", "1"]) == 0
    out = capfd.readouterr()
    assert "NOT ON THE HUB" in caplog.text
    assert not any(TOKEN in text for text in (caplog.text, out.out, out.err))
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_the_command_line_never_tells_it(here, folder, capsys, monkeypatch):
    refuse = json_answer({"error": TOKEN}, status=403, **{"X-Error-Message": TOKEN})
    monkeypatch.setattr("tests.hub.server.respond", lambda *_: refuse)
    assert command_line(["push", str(folder), REPO]) == 2
    assert command_line(["push", str(folder / TOKEN), REPO]) == 2
    assert command_line(["push", str(folder), f"me/{TOKEN}"]) == 2
    told = capsys.readouterr()
    assert told.err.count("error: ") == 3
    assert TOKEN not in told.out + told.err


def test_an_unharmed_file_is_pushed_from_where_it_lies(folder):
    held = {one.name: one.content for one in published_files(folder, tokens=(TOKEN,))}
    for name in (*TEXTS, "model.safetensors"):
        assert held[name] == folder / name


SECRETS = {
    "aws": "AKIA" + "IOSFODNN7EXAMPLF",
    "github": "ghp_" + "a1B2" * 9,
    "github-fine": "github_pat_" + "a1B2" * 12,
    "stripe": "sk_live_" + "a1" * 12,
    "slack": "xoxb-" + "123456789012-abcdefghijkl",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0",
    "google": "AIza" + "a1B2c" * 7,
    "key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_of_other_services_are_hidden(name):
    secret = SECRETS[name]
    for text in (secret, f"key: {secret}\n", f'{{"a": "x/{secret}"}}'):
        assert HIDDEN in hide_tokens(text)
        assert secret[4:24] not in hide_tokens(text)


def test_hashes_and_names_are_no_secrets():
    hashes = f"{'0123456789abcdef' * 4} {'a' * 40} sha256:{'Ab1' * 20}"
    text = f"{hashes} AKIAtic ASIAN sk-learn https://x.example/a?page=2&keyword=film"
    assert hide_tokens(text) == text


def private_recipe(tmp_path):
    return {
        "data": {
            "interactions": f"s3://me:pass@bucket/ratings.csv?X-Amz-Signature={'ab12' * 8}#me",
            "items": [str(tmp_path / "a" / "films.csv"), "C:\\Users\\me\\more.csv"],
            "users": "https://data.example/users.csv?token=geheim123",
            "cache_dir": "~/secret-project/cache",
        },
        "schema": {"users": {"key": "id", "columns": {"id": "categorical", "age": "numeric"}}},
        "model": {"preset": str(tmp_path / "presets" / "mine.json")},
        "card": {"citation": SECRETS["aws"]},
        "evaluation": {"rivals": {"other": {"preset": str(tmp_path / "rival.json")}}},
        "examples": {"user_key": "anna-4711", "record": {"id": "anna-4711", "age": 3}},
        "output_dir": str(tmp_path / "run"),
        "seed": 7,
    }


def test_no_commit_of_a_push_holds_what_is_private_in_a_recipe(own_hub, folder, tmp_path):
    recipe = private_recipe(tmp_path)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = (folder / "README.md").read_text().replace("runs/latest", str(folder))
    card += f"\nTrained on {recipe['data']['items'][0]} with {recipe['model']['preset']}.\n"
    (folder / "README.md").write_text(card)
    push_checkpoint(folder, REPO, api=own_hub.api())
    commits = own_hub.repositories[REPO].commits.values()
    assert len(commits) >= 3
    private = [str(tmp_path), "anna-4711", "geheim123", "me:pass", "ab12ab12", "secret-project"]
    private += [SECRETS["aws"], "Users\\me"]
    for commit in commits:
        for name, blob in commit.files.items():
            assert [one for one in private if one.encode() in blob.content] == [], name
    pushed = yaml.safe_load(own_hub.files(REPO)["recipe.yaml"])
    assert pushed["data"] == {
        "interactions": "s3://bucket/ratings.csv", "items": ["films.csv", "more.csv"],
        "users": "https://data.example/users.csv", "cache_dir": "cache",
    }  # fmt: skip
    assert pushed["examples"] == {"user_key": "", "record": {"age": 3}}
    assert pushed["model"] == {"preset": "mine.json"}
    assert pushed["evaluation"]["rivals"] == {"other": {"preset": "rival.json"}}
    assert "Trained on films.csv with mine.json." in own_hub.files(REPO)["README.md"].decode()
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipe


def test_no_commit_of_a_run_shows_where_its_tables_are(train, argv, here, tmp_path):
    flags = ["--checkpointing_steps", "epoch", "--hub_strategy", "checkpoint"]
    assert train([*argv, *flags, "--hub_training_state"]) == 0
    commits = here.repositories[REPO].commits.values()
    assert len(commits) >= 4
    for commit in commits:
        for name, blob in commit.files.items():
            assert str(tmp_path).encode() not in blob.content, name


@pytest.mark.parametrize("secret", ["aws", "github", "stripe"])
def test_a_secret_among_titles_stops_the_push(own_hub, folder, secret):
    path = folder / "catalogue.safetensors"
    catalogue = load_catalogue(path)
    titles = [f"Film {SECRETS[secret]}", *list(catalogue.titles)[1:]]
    dataclasses.replace(catalogue, titles=titles).save(path)
    with pytest.raises(ValueError, match="the items' titles hold what looks like an") as caught:
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert SECRETS[secret] not in str(caught.value)
    assert not own_hub.requests


def test_only_what_resuming_reads_is_pushed_of_a_state(own_hub, folder):
    state = folder / "last-checkpoint"
    state.mkdir()
    for name in ("training_state.json", "notes.txt", "optimizer.pkl", "users.parquet"):
        (state / name).write_text("{}")
    push_checkpoint(folder, REPO, api=own_hub.api(), with_training_state=True)
    pushed = [name for name in own_hub.files(REPO) if name.startswith("last-checkpoint")]
    assert pushed == ["last-checkpoint/training_state.json"]
