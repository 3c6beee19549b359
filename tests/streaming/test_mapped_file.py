"""What a file of states outlives: torn writes, kills, damage."""

import shutil

import pytest

from ftmamba.streaming.mapped_file import FILE_HEADER_BYTES, MappedFileStore
from ftmamba.streaming.stores import ABSENT, Put, Stored

OLD, NEW = Stored(1, b"old" * 300, ("e1",)), Stored(2, b"new" * 300, ("e1", "e2"))


def written(path, states=(OLD, NEW)):
    store = MappedFileStore(path)
    version = ABSENT
    for state in states:
        assert store.put("u", state, version)
        version = state.version
    store.close()
    return path


def changed_bytes(before, after):
    return [index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def test_states_outlive_the_store(tmp_path):
    path = written(tmp_path / "states")
    store = MappedFileStore(path)
    with pytest.raises(OSError, match="open in another process"):
        MappedFileStore(path)
    assert store.get(["u"]) == [NEW]
    store.close()
    store.close()
    with pytest.raises(ValueError, match="are closed"):
        store.get(["u"])


def test_a_write_torn_anywhere_leaves_the_older_state_or_the_newer(tmp_path):
    before = written(tmp_path / "a", [OLD]).read_bytes()
    after = written(tmp_path / "b", [OLD, NEW]).read_bytes()
    indices = changed_bytes(before, after)
    assert len(indices) > 500
    torn = tmp_path / "torn"
    found = []
    for cut in (*range(indices[0], indices[-1] + 2, 37), indices[-1], indices[-1] + 1):
        for content in (after[:cut] + before[cut:], before[:cut] + after[cut:]):
            torn.write_bytes(content)
            store = MappedFileStore(torn)
            found += store.get(["u"])
            # It goes on from there.
            assert store.put("u", Stored(9, b"next"), found[-1].version)
            store.close()
            store = MappedFileStore(torn)
            assert store.get(["u"]) == [Stored(9, b"next")]
            store.close()
    assert set(found) == {OLD, NEW}


def test_a_first_write_torn_anywhere_leaves_a_user_or_none(tmp_path):
    full = written(tmp_path / "a", [OLD]).read_bytes()
    torn = tmp_path / "torn"
    end = max(index for index, byte in enumerate(full) if byte) + 1
    found = set()
    for cut in (*range(FILE_HEADER_BYTES, end, 11), end):
        torn.write_bytes(full[:cut] + bytes(len(full) - cut))
        store = MappedFileStore(torn)
        state = store.get(["u"])[0]
        found.add(state)
        assert store.put("u", NEW, state.version if state else ABSENT)
        store.close()
    assert found == {None, OLD}


def test_a_file_cut_while_it_grew_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "states"
    path.write_bytes(written(tmp_path / "a").read_bytes()[:FILE_HEADER_BYTES])
    store = MappedFileStore(path)
    store.put_many([Put(f"u{row}", OLD, ABSENT) for row in range(16)])
    store.close()
    with path.open("ab") as file:
        file.write(bytes(1000))
    store = MappedFileStore(path)
    store.put_many([Put(f"v{row}", NEW, ABSENT) for row in range(40)])
    assert (len(store), store.get(["u15", "v39"])) == (56, [OLD, NEW])
    store.close()


def test_deleted_and_expired_users_leave_their_room(tmp_path):
    now = [0.0]
    path = tmp_path / "states"
    store = MappedFileStore(path, ttl_seconds=10, clock=lambda: now[0])
    for turn in range(5):
        now[0] = 100.0 * (turn + 1)
        assert all(store.put_many([Put(f"{turn}-{n}", OLD, ABSENT) for n in range(16)]))
        assert store.delete(f"{turn}-3")
        assert store.put(f"{turn}-again", NEW, ABSENT)
    size = path.stat().st_size
    assert size < FILE_HEADER_BYTES + 17 * 2 * (len(OLD.state) + 256 * 44 + 200)
    store.close()
    store = MappedFileStore(path, clock=lambda: now[0])
    assert sorted(store) == sorted(["4-again", *(f"4-{n}" for n in range(16) if n != 3)])
    store.close()


def test_a_state_that_no_slot_can_hold_is_refused_and_the_old_one_stays(tmp_path):
    with pytest.raises(ValueError, match="slot_bytes must be 0"):
        MappedFileStore(tmp_path / "states", slot_bytes=-1)
    store = MappedFileStore(tmp_path / "states", slot_bytes=4096)
    assert store.put("u", OLD, ABSENT)
    with pytest.raises(ValueError, match=r"user 'u' .* has \d+ bytes, half a slot .* has 2048"):
        store.put("u", Stored(2, bytes(3000)), 1)
    assert store.get(["u"]) == [OLD]
    store.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], "is not a file of users' states"),
        (lambda data: data[:100], "is not a file of users' states"),
        (lambda data: bytes(len(data)), "is not a file of users' states"),
        (lambda data: data[:12] + b"\xff" + data[13:], "has a damaged header"),
    ],
)
def test_another_file_is_refused_and_not_written_to(tmp_path, damage, message):
    path = written(tmp_path / "states")
    path.write_bytes(damage(path.read_bytes()))
    content = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        MappedFileStore(path)
    assert path.read_bytes() == content


def test_a_file_of_a_later_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("ftmamba.streaming.mapped_file.FORMAT_VERSION", 2)
    path = written(tmp_path / "states")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2, this ftmamba reads 1"):
        MappedFileStore(path)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    path = written(tmp_path / "states")
    copy = shutil.copy(path, tmp_path / "copy")

    def full(*_):
        raise OSError(28, "No space left on device")

    store = MappedFileStore(copy)
    monkeypatch.setattr("os.posix_fallocate", full)
    assert all(store.put_many([Put(f"u{row}", OLD, ABSENT) for row in range(15)]))
    with pytest.raises(OSError, match="no room for 32 users"):
        store.put("one more", OLD, ABSENT)
    assert (len(store), store.get(["u"])) == (16, [NEW])
    store.close()
