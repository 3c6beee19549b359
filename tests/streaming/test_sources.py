"""Events from files and pipes: every whole line once, and what is wrong in words."""

import io
import json

import pytest

from ftmamba.streaming import Event, parse_event
from ftmamba.streaming.sources import FileHistory, JsonLinesSource, StandardInputSource

from .history_checkpoint import make_events, write_events


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


def test_an_event_on_one_line_comes_back():
    event = Event("u", "i", "e\n", 5, 2.5, {"year": None, "tags": ["a"]}, {"age": 3})
    assert "\n" not in event.to_json()
    assert parse_event(event.to_json()) == event
    assert parse_event(b'{"user_key": 7, "item_key": "i", "x": 1}', event_id="e") == Event(
        "7", "i", "e"
    )
    assert parse_event('{"user_key": "u", "item_key": "i", "time": 5.9}').time == 5
    brought = Event("u", "i", context={"price": 3.5})
    assert parse_event(brought.to_json()) == brought
    text = '{"user_key": "u", "item_key": "i", "context": {"price": null, "on_sale": true}}'
    assert parse_event(text).context == {"on_sale": 1.0}
    number = 10**20 + 7
    numbered = parse_event(f'{{"user_key": {number}, "item_key": 1, "event_id": {number}}}')
    assert (numbered.user_key, numbered.event_id) == (str(number), str(number))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_key": None}, "user_key must be a text"),
        ({"user_key": ""}, "user_key must be a text"),
        ({"user_key": True}, "user_key must be a text"),
        ({"user_key": "x" * 1025}, "user_key must be a text of 1 to 1024 bytes"),
        ({"item_key": ["i"]}, "item_key must be a text"),
        ({"event_id": ""}, "event_id must be a text of 1 to 128"),
        ({"event_id": "e" * 129}, "event_id must be a text of 1 to 128"),
        ({"time": "2024-01-01"}, "time must be seconds since 1970"),
        ({"time": -1}, "time must be seconds since 1970"),
        ({"time": 1_700_000_000_000_000}, "divide milliseconds by 1000"),
        ({"time": True}, "time must be seconds since 1970"),
        ({"weight": "5"}, "weight must be a number"),
        ({"weight": 10**400}, "weight must be a number"),
        ({"weight": 1e31}, "weight must be a number"),
        ({"item_record": []}, "item_record must be an object"),
        ({"user_record": 1}, "user_record must be an object"),
        ({"context": [3]}, "context must be an object"),
        ({"context": {"price": "3"}}, "context must have a finite number in 'price', got '3'"),
        ({"context": {"price": 1e31}}, "context must have a finite number in 'price'"),
        ({"context": {"price": [1]}}, "leave it out where it is not known"),
    ],
)
def test_a_wrong_value_is_told_by_its_field(change, message):
    values = {"user_key": "u", "item_key": "i"} | change
    with pytest.raises(ValueError, match=message):
        parse_event(json.dumps(values))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"user_key": NaN}', "\ud800", b"\xff", "[" * 9999, '{"a":1,"a":2}']
)
def test_what_is_no_object_is_no_event(text):
    with pytest.raises(ValueError, match="an event must be a JSON object"):
        parse_event(text)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_file_is_read_to_its_end_and_next_time_from_there(path, tmp_path, size):
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


def test_what_was_not_acknowledged_comes_again(path, tmp_path):
    events = make_events(5)
    write_events(path, events)
    source = JsonLinesSource(path, tmp_path / "offset")
    source.acknowledge(source.read(2))
    source.read(2)
    source.close()
    assert drained(JsonLinesSource(path, tmp_path / "offset")) == events[2:]


def test_a_line_without_an_end_waits_for_it(path, tmp_path):
    line = make_events(1)[0].to_json()
    path.write_text(line[:-5])
    assert drained(JsonLinesSource(path, tmp_path / "offset")) == []
    slept = []
    source = JsonLinesSource(path, tmp_path / "offset", follow=True, sleep=slept.append)
    assert len(source.read(5)) == 0
    path.write_text(line)
    assert len(source.read(5)) == 0
    path.write_text(f"{line}\n")
    assert list(source.read(5).events) == make_events(1)
    assert len(slept) == 2
    source.close()


def test_a_bad_line_is_told_with_its_place_and_does_not_stop_the_others(path):
    good = make_events(2)
    lines = [good[0].to_json(), "{broken", "x" * (2**20 + 5), good[1].to_json()]
    path.write_text("\n".join(lines))
    source = JsonLinesSource(path)
    batch = source.read(10)
    assert list(batch.events) == good
    place = len(lines[0]) + 1
    assert batch.problems[0].startswith(f"events.jsonl, byte {place}: an event must be")
    assert batch.problems[1].endswith("a line of more than 1048576 bytes")
    source.close()


def test_events_without_ids_get_the_same_when_read_again_and_another_elsewhere(path):
    line = '{"user_key": "u", "item_key": "i"}\n'
    path.write_text(line * 2)
    ids = [[event.event_id for event in drained(JsonLinesSource(path))] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len({*ids[0], ""}) == 3


@pytest.mark.parametrize("content", ["", "other\n" * 100])
def test_another_file_in_the_place_of_one_that_was_read_is_refused(path, tmp_path, content):
    write_events(path, make_events(3))
    drained(JsonLinesSource(path, tmp_path / "offset"))
    path.write_text(content)
    with pytest.raises(
        ValueError, match=r"is not the file of which .*offset.* give another offset"
    ):
        JsonLinesSource(path, tmp_path / "offset")


def test_a_file_that_is_cut_while_it_is_followed_is_told(path):
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


def test_no_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of events"):
        JsonLinesSource(tmp_path / "none")


def test_the_history_of_a_file_ends_where_the_source_has_read_to(path):
    events = make_events(30, n_users=2)
    write_events(path, events)
    source = JsonLinesSource(path)
    history = FileHistory(path, source)
    for end in (10, 20, 30):
        source.read(10)
        for user in ("u0", "u1"):
            assert history(user) == [event for event in events[:end] if event.user_key == user]
    assert history("nobody") == []
    source.close()


class Pipe(io.RawIOBase):
    """Gives its pieces one by one, as a pipe would."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_pipe_gives_what_is_there_without_waiting_for_more():
    events = make_events(5)
    text = "".join(f"{event.to_json()}\n" for event in events).encode()
    cut = len(events[0].to_json()) + 20
    pipe = Pipe([text[:cut], text[cut:-3], b"", b""])
    source = StandardInputSource(io.BufferedReader(pipe))
    assert list(source.read(9).events) == events[:1]
    assert len(pipe.pieces) == 3
    assert list(source.read(2).events) == events[1:3]
    assert list(source.read(9).events) == events[3:4]
    last = source.read(9)
    assert last.problems == ["line 5: " + last.problems[0].partition(": ")[2]]
    assert source.read(9) is None


def test_a_line_of_a_pipe_that_is_too_long_is_passed_over():
    line = make_events(1)[0].to_json().encode()
    pieces = [b"x" * 8000] * 140 + [b"\n" + line + b"\n"]
    source = StandardInputSource(io.BufferedReader(Pipe(pieces)))
    batch = source.read(9)
    assert (list(batch.events), len(batch.problems)) == (make_events(1), 1)
