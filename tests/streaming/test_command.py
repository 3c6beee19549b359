"""`python -m ftmamba stream`."""

import io
import json
from types import SimpleNamespace

import pytest

from ftmamba.__main__ import main
from ftmamba.commands.stream import open_source, open_store

from .history_checkpoint import make_events, write_events


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "events.jsonl"
    write_events(path, make_events(50, n_users=4))
    return path


def lines_of(capsys):
    out, err = capsys.readouterr()
    words = [line.split("  ") for line in out.splitlines() if not line.startswith("{")]
    return {parts[0]: [part.strip() for part in parts[1:] if part] for parts in words}, out, err


def test_a_file_is_taken_in_once_and_its_counts_are_printed(
    checkpoint_folder, path, tmp_path, capsys
):
    arguments = ["stream", str(checkpoint_folder), "--source", str(path)]
    store = ["--store", f"file:{tmp_path / 'states'}"]
    assert main([*arguments, *store]) == 0
    counts, _, err = lines_of(capsys)
    assert counts["messages"][0] == counts["observed"][0] == "50"
    assert counts["users in the store"] == ["4"]
    assert err == ""
    assert json.loads((tmp_path / "events.jsonl.offset").read_text())["offset"] > 1000
    with path.open("a") as file:
        file.write(make_events(51, n_users=4)[-1].to_json())
    assert main([*arguments, *store, "--float16"]) == 0
    assert lines_of(capsys)[0]["messages"][0] == "1"


def test_memory_takes_a_file_in_from_its_start_each_time(checkpoint_folder, path, tmp_path, capsys):
    for _ in range(2):
        arguments = ["stream", str(checkpoint_folder), "--source", str(path), "--store", "memory:"]
        assert main([*arguments, "--late", "recompute"]) == 0
        assert lines_of(capsys)[0]["observed"] == ["50"]
    assert not (tmp_path / "events.jsonl.offset").exists()


def test_the_best_items_of_users_are_printed_as_they_change(
    checkpoint_folder, tmp_path, monkeypatch, capsys
):
    text = "".join(f"{event.to_json()}\n" for event in make_events(5, n_users=2))
    pipe = SimpleNamespace(buffer=io.BytesIO(text.encode() + b"nonsense\n"))
    monkeypatch.setattr("sys.stdin", pipe)
    monkeypatch.chdir(tmp_path)
    arguments = ["stream", str(checkpoint_folder), "--source", "-", "--store", "memory:"]
    assert main([*arguments, "--recommend", "3"]) == 0
    counts, out, err = lines_of(capsys)
    best = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert sorted(one["user_key"] for one in best) == ["u0", "u1"]
    assert all(len(set(one["item_keys"])) == 3 for one in best)
    assert counts["malformed"] == ["1"]
    assert json.loads((tmp_path / "stdin.refused").read_text())["message"] == "nonsense"
    assert "ftmamba: line 6: an event must be a JSON object" in err


def test_a_stream_is_taken_in(checkpoint_folder, redis_server, capsys):
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(redis_server.url) as client:
        for event in make_events(20, n_users=3):
            client.xadd("events", {"event": event.to_json()})
        source = ["--source", redis_server.stream_url("events"), "--store"]
        assert main(["stream", str(checkpoint_folder), *source, redis_server.url]) == 0
        counts, _, _ = lines_of(capsys)
        assert (counts["observed"], counts["users in the store"]) == (["20"], ["3"])
        assert len(client.keys("ftmamba:state:*")) == 3
        assert client.xpending("events", "ftmamba")["pending"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.jsonl --store memory:", "no file of events 'none.jsonl'"),
        ("- --store memory:x", "a store must be memory:, file:PATH or redis"),
        ("- --store states", "a store must be memory:, file:PATH or redis"),
        ("redis://h/s --store memory:", "loses at its end"),
        ("redis://h/a/b/c --store file:x", "must end in its name"),
        ("redis://h/ --store file:x", "must end in its name"),
        ("- --store memory: --batch 0", "batch_size must be 1"),
        ("- --store memory: --ttl -1", "ttl_seconds must be 0"),
        ("- --store memory: --claim_seconds 0", "claim_seconds must be a positive number"),
        ("- --store redis://h?replicas=x", "replicas must be a number, got 'x'"),
        ("- --store memory: --recommend 99", "must be 20 or less"),
        ("- --store memory: --recommend -1", "must be 0 (none) or more"),
    ],
)
def test_wrong_arguments_are_told(checkpoint_folder, arguments, message, capsys):
    assert main(["stream", str(checkpoint_folder), "--source", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_places_with_options(redis_server, tmp_path):
    store = open_store(f"{redis_server.url}?prefix=mine:", ttl_seconds=5)
    assert list(store) == []
    store.close()
    with pytest.raises(ValueError, match="has no option 'prefiks'; it has: prefix, replicas"):
        open_store("redis://h?prefiks=x")
    with pytest.raises(ValueError, match=r"has no option 'stream'; it has none$"):
        open_source("redis://h/0?stream=events")
    for wrong in ("one", "0/1", "-1"):
        with pytest.raises(ValueError, match=f"in the number of a database, got '{wrong}'; write"):
            open_store(f"redis://h/{wrong}?prefix=mine:")
    source = open_source(redis_server.url + "/events")
    assert source.read(1) is None
    source.close()
    write_events(tmp_path / "e", make_events(1))
    source = open_source(str(tmp_path / "e"), offset_file=tmp_path / "offset")
    source.acknowledge(source.read(1))
    source.close()
    assert (tmp_path / "offset").exists()
