"""What strangers wrote reaches a terminal as text: no sequence that steers it, no other order."""

import dataclasses
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from ftmamba.__main__ import main
from ftmamba.checkpoint import save_checkpoint
from ftmamba.terminal import printable
from tests.streaming.history_checkpoint import make_checkpoint

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202etxt.exe\u2066\x9b31m\x7f\u200b\r\nrank 1"
HOSTILE += "\U000e0041\x85\u2028"
SOUND = "Amélie, 天空の城 👩‍👩‍👧 क्‍ष שלום"
ITEM = "i\x1b[31m\u202e\x9b1"


def steers(text):
    """Return what in a text is no visible character, but for the ends of its lines."""
    harmless = {"\n", "\u200c", "\u200d"}
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [one for one in text if unicodedata.category(one) in kinds and one not in harmless]


@pytest.fixture
def folder(tmp_path):
    checkpoint = make_checkpoint()
    catalogue = checkpoint.catalogue
    keys = [ITEM, *list(catalogue.keys)[1:]]
    titles = [HOSTILE, SOUND] * 10
    catalogue = dataclasses.replace(catalogue, keys=keys, titles=titles)
    save_checkpoint(tmp_path / "films", dataclasses.replace(checkpoint, catalogue=catalogue))
    return tmp_path / "films"


def test_a_text_of_others_is_one_line_that_only_shows():
    assert steers(HOSTILE)
    assert steers(printable(HOSTILE)) == []
    assert "\n" not in printable(HOSTILE)
    assert json.loads(f'"{printable(HOSTILE)}"') == HOSTILE.replace("\r\n", " ")
    assert printable("\ud800") == r"\ud800"
    assert printable(SOUND) == SOUND


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_recommend_shows_titles_and_keys(folder, capsys, form):
    assert main(["recommend", str(folder), "--record", '{"age": 31}', "-k", "20", *form]) == 0
    shown = capsys.readouterr().out
    assert steers(shown) == []
    assert SOUND in shown
    assert printable(ITEM) in shown
    if form:
        assert ITEM in [one["item_key"] for one in json.loads(shown)]
    else:
        assert len(shown.splitlines()) == 21


def test_explain_shows_titles_and_values(folder, capsys):
    record = json.dumps({"gender": "\x1b[31m\nF"})
    assert main(["explain", str(folder), "--record", record, "--item", ITEM]) == 0
    shown = capsys.readouterr().out
    assert steers(shown) == []
    assert r"\u001b[31m" in shown


def test_stream_shows_keys_of_users_and_items(folder, tmp_path, capsys):
    user = HOSTILE.strip()
    event = {"user_key": user, "item_key": "i03", "time": 5, "event_id": "e1"}
    (tmp_path / "events").write_text(json.dumps(event) + "\n")
    source, store = str(tmp_path / "events"), "memory:"
    asked = ["stream", str(folder), "--source", source, "--store", store, "--recommend", "20"]
    assert main(asked) == 0
    shown = capsys.readouterr()
    assert steers(shown.out) == steers(shown.err) == []
    answer = json.loads(shown.out.splitlines()[0])
    assert answer["user_key"] == user
    assert ITEM in answer["item_keys"]


def test_an_error_shows_what_it_names(folder, capsys):
    for command in (
        ["recommend", HOSTILE[:40], "--user", "1"],
        ["recommend", str(folder), "--user", HOSTILE],
        ["runs", HOSTILE[:40]],
    ):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert steers(shown.out) == steers(shown.err) == []
        assert r"\u001b" in shown.err or r"\x1b" in shown.err


def test_an_output_of_few_characters_gets_escapes(folder):
    command = [
        sys.executable,
        "-m",
        "ftmamba",
        "recommend",
        str(folder),
        "--record",
        "{}",
        "--json",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert SOUND in [one["title"] for one in json.loads(shown.decode("ascii"))]
