"""Events from files and pipes: every complete line once, and what is wrong in words."""

import io
import json
import math

import pytest

from ftmamba.streaming import Refused, parse_event
from ftmamba.streaming.consumer import in_order
from ftmamba.streaming.sources import JsonLinesSource, RefusedFile, StandardInputSource

from .history_checkpoint import event, make_events, write_events


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def drained(source, size=3):
    events = []
    while (batch := source.read(size)) is not None:
        assert len(batch) <= size
        events += batch.events
        source.acknowledge(batch)
    source.close()
    return events


def test_an_event_survives_its_line():
    records = {"item_record": {"year": None, "tags": ["a"]}, "user_record": {"age": 3}}
    for one in (
        event("u", "i", "e\nf", time=5.0, weight=2.5, context={"price": 3.5}, **records),
        event("u", "i"),
    ):
        assert "\n" not in one.to_json()
        assert parse_event(one.to_json()) == one


def test_raw_values_are_read_as_in_a_file():
    large = 10**20 + 7
    text = (
        f'{{"user_key": {large}, "item_key": 7.0, "time": 5.9, "x": 1,'
        '"context": {"price": null, "on_sale": true}}'
    )
    expected = event(str(large), "7", "e", time=5.9, context={"on_sale": 1.0})
    assert parse_event(text.encode(), event_id="e") == expected
    for late, early in ((5.9, 5.1), ("2020-01-01T00:00:00.9", "2020-01-01T00:00:00.1")):
        events = [{"user_key": 1, "item_key": n, "time": t} for n, t in enumerate((late, early))]
        parsed = [parse_event(json.dumps(one)) for one in events]
        assert [one.event.item for one in in_order(parsed)] == ["1", "0"]
    text = '{"user_key": "u", "item_key": "i", "time": "1970-01-01T01:00+01:00", "event_id": 3}'
    assert parse_event(text, event_id="e") == event("u", "i", "3", time=0.0)
    assert math.isnan(parse_event('{"user_key": 1, "item_key": 2, "time": null}').event.time)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_key": None}, "user_key must be a text"),
        ({"user_key": {}}, "user_key must be a text"),
        ({"user_key": "\ud800"}, "user_key must be a text"),
        ({"user_key": "x" * 1025}, "user_key must be a text of 1 to 1024 bytes"),
        ({"item_key": ["i"]}, "item_key must be a text"),
        ({"event_id": ""}, "event_id must be a text"),
        ({"event_id": "e" * 513}, "event_id must be a text of 1 to 512"),
        ({"time": "noon"}, "time must be seconds since 1970"),
        ({"time": -1}, "time must be seconds since 1970"),
        ({"times": 5}, "an event has no field 'times'; did you mean 'time'"),
        ({"Time": 5}, "an event has no field 'Time'; did you mean 'time'"),
        ({"time": 1_700_000_000_000}, "divide milliseconds by 1000"),
        ({"time": 990_000_000_000}, "divide milliseconds by 1000"),
        ({"time": 99_000_000_000}, "not in the future"),
        ({"time": "2990-01-01"}, "not in the future"),
        ({"weight": "five"}, "weight must be a finite number"),
        ({"weight": 10**400}, "weight must be a finite number"),
        ({"weight": -1e31}, "weight must be a finite number"),
        ({"item_record": []}, "item_record must be an object"),
        ({"user_record": 1}, "user_record must be an object"),
        ({"context": [3]}, "context must be an object"),
        ({"context": {"price": "3 EUR"}}, "context 'price' must be a finite number, got '3 EUR'"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(change, message):
    with pytest.raises(ValueError, match=message):
        parse_event(json.dumps({"user_key": "u", "item_key": "i"} | change))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"user_key": NaN}', "\ud800", b"\xff", "[" * 9999, '{"a":1,"a":2}']
)
def test_anything_but_an_object_is_refused(text):
    with pytest.raises(ValueError, match="an event must be a JSON object"):
        parse_event(text)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_file_is_read_to_its_end_and_continued_from_there(path, tmp_path, size):
    events = make_events(5)
    offset = tmp_path / "offset"
    write_events(path, events[:3])
    assert drained(JsonLinesSource(path, offset), size) == events[:3]
    assert drained(JsonLinesSource(path, offset), size) == []
    with path.open("a") as file:
        file.write(f"\n  \n{events[3].to_json()}\r\n{events[4].to_json()}")
    assert drained(JsonLinesSource(path, offset), size) == events[3:]
    assert drained(JsonLinesSource(path, offset), size) == []
    assert drained(JsonLinesSource(path), size) == events


def test_what_was_not_acknowledged_is_delivered_again(path, tmp_path):
    events = make_events(5)
    write_events(path, events)
    source = JsonLinesSource(path, tmp_path / "offset")
    source.acknowledge(source.read(2))
    source.read(2)
    source.close()
    assert drained(JsonLinesSource(path, tmp_path / "offset")) == events[2:]


def test_a_line_without_a_newline_waits_for_it(path, tmp_path):
    line = make_events(1)[0].to_json()
    path.write_text(line[:-5])
    assert drained(JsonLinesSource(path, tmp_path / "offset")) == []
    waits = []
    source = JsonLinesSource(path, tmp_path / "offset", follow=True, sleep=waits.append)
    assert len(source.read(5)) == 0
    path.write_text(line)
    assert len(source.read(5)) == 0
    path.write_text(f"{line}\n")
    assert list(source.read(5).events) == make_events(1)
    assert len(waits) == 2
    source.close()


def test_a_bad_line_is_reported_with_its_offset_and_does_not_stop_the_others(path):
    good = make_events(2)
    lines = [good[0].to_json(), "{broken", "x" * (2**20 + 5), good[1].to_json()]
    path.write_text("\n".join(lines))
    source = JsonLinesSource(path)
    batch = source.read(10)
    assert list(batch.events) == good
    start = len(lines[0]) + 1
    reasons = [one.reason for one in batch.problems]
    assert reasons[0].startswith(f"events.jsonl, byte {start}: an event must be")
    assert reasons[1].endswith("a line of more than 1048576 bytes")
    assert batch.problems[0].message == "{broken"
    source.close()


def test_events_without_ids_get_the_same_when_read_again_and_another_elsewhere(path):
    path.write_text('{"user_key": "u", "item_key": "i"}\n' * 2)
    ids = [[one.event_id for one in drained(JsonLinesSource(path))] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len({*ids[0], ""}) == 3


@pytest.mark.parametrize("content", ["", "other\n" * 100])
def test_another_file_under_the_same_name_is_refused(path, tmp_path, content):
    write_events(path, make_events(3))
    drained(JsonLinesSource(path, tmp_path / "offset"))
    path.write_text(content)
    with pytest.raises(ValueError, match=r"is not the file of which .* give another offset"):
        JsonLinesSource(path, tmp_path / "offset")


def test_a_file_that_is_cut_while_it_is_followed_is_refused(path):
    write_events(path, make_events(3))
    source = JsonLinesSource(path, follow=True)
    source.read(3)
    path.write_text("")
    with pytest.raises(ValueError, match="it was cut or replaced"):
        source.read(3)
    source.close()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"offset": -1}', '{"offset": true}'])
def test_a_damaged_offset_is_refused(path, tmp_path, text):
    write_events(path, make_events(3))
    (tmp_path / "offset").write_text(text)
    with pytest.raises(ValueError, match="offset"):
        JsonLinesSource(path, tmp_path / "offset")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of events"):
        JsonLinesSource(tmp_path / "none")


def test_a_file_with_another_past_is_not_continued(path):
    write_events(path, make_events(3))
    source = JsonLinesSource(path)
    position = source.read(2).position
    write_events(path, [*make_events(1), *make_events(3)])
    with pytest.raises(ValueError, match=r"is not the file whose first .* are in the states"):
        source.seek(position)
    source.close()


def test_refused_messages_are_kept_on_lines_of_their_own_for_their_owner(tmp_path):
    refused = [Refused("late", "old\n", '{"a": 1}'), Refused("malformed", "bad", "\ud800")]
    keep = RefusedFile(tmp_path / "refused")
    keep(refused[:1])
    with (tmp_path / "refused").open("a") as file:
        file.write('{"kind": "cut by a kill')
    RefusedFile(tmp_path / "refused")(refused)
    lines = (tmp_path / "refused").read_text().splitlines()
    assert [json.loads(lines[row])["kind"] for row in (0, 2, 3)] == ["late", "late", "malformed"]
    assert len(lines) == 4
    assert (tmp_path / "refused").stat().st_mode & 0o077 == 0


class Pipe(io.RawIOBase):
    """Returns its pieces one by one, as a pipe would."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_pipe_returns_what_has_arrived_without_waiting_for_more():
    events = make_events(5)
    text = "".join(f"{one.to_json()}\n" for one in events).encode()
    cut = len(events[0].to_json()) + 20
    pipe = Pipe([text[:cut], text[cut:-3], b"", b""])
    source = StandardInputSource(io.BufferedReader(pipe))
    assert list(source.read(9).events) == events[:1]
    assert len(pipe.pieces) == 3
    assert list(source.read(2).events) == events[1:3]
    assert list(source.read(9).events) == events[3:4]
    assert source.read(9).problems[0].reason.startswith("line 5: ")
    assert source.read(9) is None


def test_a_line_of_a_pipe_that_is_too_long_is_skipped():
    line = make_events(1)[0].to_json().encode()
    pieces = [b"x" * 8000] * 140 + [b"\n" + line + b"\n"]
    source = StandardInputSource(io.BufferedReader(Pipe(pieces)))
    batch = source.read(9)
    assert (list(batch.events), len(batch.problems)) == (make_events(1), 1)
