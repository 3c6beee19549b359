"""An access token is nowhere: not on the Hub, not in a log, not in an error."""

import logging
import traceback

import numpy as np
import pytest
from safetensors.numpy import save_file

from ftmamba.__main__ import main as command_line
from ftmamba.hub import HIDDEN, HubError, hide_tokens
from hub_cards.contents import published_files
from hub_cards.push import Destination, push_checkpoint
from hub_cards.training_push import tokens_hidden_in_logs
from tests.hub.server import READ_TOKEN, TOKEN, json_answer

REPO = "tester/films"
TEXTS = ["README.md", "recipe.yaml", "all_results.json", "network.py"]


def test_texts_and_messages_are_pushed_without_the_token_and_that_is_said(own_hub, folder, caplog):
    for name in TEXTS:
        with (folder / name).open("a") as file:
            file.write(f"\n# {TOKEN}\n")
    push_checkpoint(folder, REPO, message=f"with {TOKEN}", api=own_hub.api())
    for name in TEXTS:
        assert TOKEN in (folder / name).read_text()
        assert f"# {HIDDEN}\n" in own_hub.files(REPO)[name].decode()
        assert f"{name} held an access token" in caplog.text
    titles = [one.title for one in own_hub.repositories[REPO].commits.values()]
    assert f"with {HIDDEN}" in titles
    assert not any(TOKEN in text for text in (caplog.text, *titles))
    assert not any(TOKEN.encode() in request.body for request in own_hub.requests)


def test_other_tokens_and_passwords_in_addresses_are_hidden_too(own_hub, folder):
    secrets = [READ_TOKEN, "me:hunter22@", "hf_oauth_eyJhbGciOiJFZERTQSJ9.abcdefghijk"]
    text = f"{READ_TOKEN} https://{secrets[1]}data.example/users.csv {secrets[2]}\n"
    (folder / "recipe.yaml").write_text(text)
    push_checkpoint(folder, REPO, api=own_hub.api())
    pushed = own_hub.files(REPO)["recipe.yaml"].decode()
    assert not any(secret in pushed for secret in secrets)
    assert pushed == f"{HIDDEN} https://{HIDDEN}@data.example/users.csv {HIDDEN}\n"


def test_words_that_look_a_little_like_tokens_stay():
    text = "hf_hub_download from hf_xet; scheme://host:80/path@x; hf_1234; a: b@c.d"
    assert hide_tokens(text) == text


@pytest.mark.parametrize("name", ["catalogue.safetensors", "vocabularies.safetensors"])
def test_a_token_among_the_values_stops_the_push(own_hub, folder, name):
    values = np.frombuffer(f"u1 {TOKEN} u2".encode(), dtype=np.uint8)
    save_file({"bytes": values}, folder / name)
    with pytest.raises(
        ValueError, match=rf"cannot push {name}: it holds your access token"
    ) as told:
        push_checkpoint(folder, REPO, api=own_hub.api())
    assert TOKEN not in str(told.value)
    assert not own_hub.requests


def test_a_repository_named_like_a_token_is_refused_without_repeating_it():
    for name in (TOKEN, f"me/{TOKEN}"):
        with pytest.raises(ValueError, match="holds an access token") as told:
            Destination(name)
        assert TOKEN not in str(told.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_an_answer_that_repeats_the_token_is_told_without_it(own_hub, folder, status, monkeypatch):
    def say_it(_hub, request):
        sent = request.headers["authorization"]
        headers = {"X-Error-Message": f"no: {sent}", "X-Request-Id": TOKEN}
        return json_answer({"error": f"your header was {sent}"}, status=status, **headers)

    monkeypatch.setattr("tests.hub.server.respond", say_it)
    with pytest.raises(HubError) as told:
        push_checkpoint(folder, REPO, api=own_hub.api())
    said = "".join(traceback.format_exception(told.value))
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
