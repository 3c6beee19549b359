"""One contract for every store."""

import random
import sqlite3
import threading
import time
from itertools import count

import pytest

from ftmamba.streaming import stores
from ftmamba.streaming.redis_backend import RedisStore
from ftmamba.streaming.stores import (
    ABSENT,
    Claim,
    Put,
    SQLiteStore,
    Stored,
    SupersededError,
    next_version,
)

STATE = bytes(range(256)) * 4


@pytest.fixture(params=["memory", "file", "redis"])
def make_store(request, tmp_path):
    """Return a function that opens a store."""
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")

    def make(**options):
        store = {
            "memory": lambda: SQLiteStore(**options),
            "file": lambda: SQLiteStore(tmp_path / "states", **options),
            "redis": lambda: RedisStore(server.url, **options),
        }[request.param]()
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def test_what_was_put_is_returned_and_nothing_of_others(store):
    first = Stored(5, STATE, ("a", "é"))
    assert store.get(["u", "v"]) == [None, None]
    assert store.put("u", first, ABSENT)
    assert store.get(["v", "u", "u"]) == [None, first, first]
    assert store.put("v", Stored(1, b""), ABSENT)
    assert (len(store), sorted(store)) == (2, ["u", "v"])


@pytest.mark.parametrize("key", ["ключ", "a:b*?[c]\\", "0", " ", "x" * 1024, "new\nline"])
def test_any_text_is_a_key(store, key):
    assert store.put(key, Stored(1, STATE, ()), ABSENT)
    assert store.get([key, f"{key[:-1]}!"])[0] == Stored(1, STATE, ())
    assert list(store) == [key]


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "\ud800", 7])
def test_other_keys_are_refused(store, key):
    for act in (
        lambda: store.get([key]),
        lambda: store.put(key, Stored(1, b""), ABSENT),
        lambda: store.delete(key),
    ):
        with pytest.raises(ValueError, match="key must be a text of 1 to 1024 bytes"):
            act()


@pytest.mark.parametrize("first", [1, 2**53 + 1])  # a double has no whole numbers beyond 2**53
def test_a_put_on_another_version_changes_nothing(store, first):
    assert not store.put("u", Stored(2, STATE), 1)
    assert store.get(["u"]) == [None]
    assert store.put("u", Stored(first, STATE), ABSENT)
    for version in (ABSENT, first - 1, first + 1):
        assert not store.put("u", Stored(9, b"other"), version)
    assert store.get(["u"]) == [Stored(first, STATE)]
    assert store.put("u", Stored(first + 1, b"new", ("e",)), first)
    assert store.get(["u"]) == [Stored(first + 1, b"new", ("e",))]


def test_many_puts_succeed_or_fail_each_by_itself(store):
    users = [f"u{row}" for row in range(600)]
    assert all(store.put_many([Put(user, Stored(1, user.encode()), ABSENT) for user in users]))
    changes = [Put(user, Stored(2, b"2"), row % 2) for row, user in enumerate(users)]
    assert store.put_many(changes) == [row % 2 == 1 for row in range(600)]
    found = store.get(users)
    assert [one.version for one in found] == [1, 2] * 300
    assert found[598].state == b"u598"
    with pytest.raises(ValueError, match="'u1' occurs twice"):
        store.put_many([Put("u1", Stored(3, b""), 2)] * 2)
    assert store.put_many([]) == store.get([]) == []


def test_a_deleted_user_is_absent_and_may_return(store):
    assert not store.delete("u")
    store.put("u", Stored(1, STATE), ABSENT)
    assert store.delete("u")
    assert not store.delete("u")
    assert (store.get(["u"]), len(store), list(store)) == ([None], 0, [])
    assert not store.put("u", Stored(2, STATE), 1)
    assert store.put("u", Stored(7, STATE), ABSENT)
    assert store.get(["u"]) == [Stored(7, STATE)]


def test_threads_that_compare_and_swap_lose_no_update(store):
    store.put("u", Stored(1, b"0"), ABSENT)

    def add_ten():
        for _ in range(10):
            for _try in count():
                current = store.get(["u"])[0]
                new = Stored(current.version + 1, str(int(current.state) + 1).encode())
                if store.put("u", new, current.version):
                    break

    threads = [threading.Thread(target=add_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(["u"]) == [Stored(41, b"40")]


def test_a_log_has_a_users_events_since_the_start(store):
    one = Stored(1, STATE, ("a",), {"s": ("1", "2")}, is_logged=True)
    store.put_many([Put("u", one, ABSENT, ["é", "b"]), Put("v", Stored(1, b""), ABSENT)])
    store.put_many([Put("u", Stored(2, STATE), 1, ["c"]), Put("v", Stored(2, b""), 9, ["lost"])])
    assert (store.log("u"), store.log("v")) == (["é", "b", "c"], [])
    store.put_many([Put("u", Stored(3, STATE), 2, ["d"], is_start=True)])
    assert store.log("u") == ["d"]
    store.delete("u")
    assert store.log("u") == []
    store.put_many([Put("u", one, ABSENT)])
    assert store.get(["u"]) == [one]


@pytest.mark.parametrize("make_store", ["file", "redis"], indirect=True)
def test_a_source_has_one_consumer_and_a_superseded_one_writes_nothing(make_store):
    first, second = make_store(), make_store()
    assert first.claim("s", "one", 60) == Claim("one", "")
    assert first.put("u", Stored(1, b"first"), ABSENT)
    first.advance("005")
    assert second.claim("s", "two", 60) == Claim("one", "")
    assert second.claim("t", "two", 60) == Claim("two", "")
    assert second.claim("s", "two", 60, instead_of="one") == Claim("two", "005")
    for act in (
        lambda: first.put("u", Stored(2, b"late"), 1),
        lambda: first.advance("006"),
    ):
        with pytest.raises(SupersededError, match="another consumer has claimed s"):
            act()
    assert second.put("u", Stored(2, b"second"), 1)
    second.release()
    assert first.claim("s", "one", 0.02) == Claim("one", "005")
    time.sleep(0.1)
    assert second.claim("s", "two", 60) == Claim("two", "005")
    assert first.get(["u"]) == [Stored(2, b"second")]
    assert first.n_vanished() == 0


@pytest.mark.parametrize("make_store", ["memory", "file"], indirect=True)
def test_a_user_expires_after_the_last_put(make_store):
    # Redis has its own clock: see test_redis.py.
    now = [100.0]
    store = make_store(ttl_seconds=10, clock=lambda: now[0])
    store.put("u", Stored(1, STATE), ABSENT)
    now[0] = 109
    store.put("v", Stored(1, STATE), ABSENT)
    assert store.put("u", Stored(2, STATE), 1)
    now[0] = 118.5
    assert len(store) == 2
    now[0] = 119
    assert (store.get(["u", "v"]), len(store), list(store)) == ([None, None], 0, [])
    assert not store.put("u", Stored(3, STATE), 2)
    assert store.put("u", Stored(3, STATE), ABSENT)
    assert list(store) == ["u"]


@pytest.mark.parametrize("ttl", [-1, float("nan"), float("inf")])
def test_a_time_to_live_must_be_a_number(make_store, ttl):
    with pytest.raises(ValueError, match="ttl_seconds must be 0"):
        make_store(ttl_seconds=ttl)


def test_a_version_is_a_positive_number_and_a_first_one_is_new():
    for version in (0, -1, 2**63):
        with pytest.raises(ValueError, match="version of a stored state"):
            Stored(version, b"")
    assert next_version(7) == 8
    first = next_version(ABSENT)
    assert 2**60 < first < next_version(ABSENT) + 1 < 2**63


@pytest.fixture
def path(tmp_path):
    """A file with one user's state."""
    store = SQLiteStore(tmp_path / "states")
    store.put("u", Stored(5, STATE, ("e",)), ABSENT)
    store.close()
    return tmp_path / "states"


def test_states_outlive_the_store_and_are_its_owners(path):
    assert path.stat().st_mode & 0o077 == 0
    store = SQLiteStore(path)
    assert store.get(["u"]) == [Stored(5, STATE, ("e",))]
    store.sync()
    store.close()
    store.close()
    for act in (lambda: store.get(["u"]), lambda: store.delete("u"), lambda: list(store)):
        with pytest.raises(ValueError, match="are closed; open them again"):
            act()


def test_what_another_process_puts_into_the_file_counts(path):
    first, second = SQLiteStore(path), SQLiteStore(path)
    assert second.put("u", Stored(6, b"theirs"), 5)
    assert not first.put("u", Stored(6, b"ours"), 5)
    assert first.get(["u"]) == [Stored(6, b"theirs")]
    first.close()
    second.close()


def test_a_file_that_is_locked_for_long_or_full_is_told_and_unchanged(path, monkeypatch):
    monkeypatch.setattr(stores, "LONGEST_WAIT_SECONDS", 0.05)
    other, store = sqlite3.connect(path, isolation_level=None), SQLiteStore(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match=r"is locked.*end the process that keeps"):
        store.put("u", Stored(6, b""), 5)
    other.close()
    store._file.execute("PRAGMA max_page_count = 9")
    with pytest.raises(OSError, match=r"full.*nothing is lost: free some space"):
        store.put_many([Put(f"v{row}", Stored(1, STATE), ABSENT) for row in range(100)])
    assert (list(store), store.get(["u"])) == (["u"], [Stored(5, STATE, ("e",))])
    store.close()


def test_a_folder_is_no_file_of_states(tmp_path):
    with pytest.raises(OSError, match="cannot be read or written"):
        SQLiteStore(tmp_path)


def test_expired_users_leave_their_room(tmp_path):
    now = [0.0]
    store = SQLiteStore(tmp_path / "states", ttl_seconds=10, clock=lambda: now[0])
    n_pages = []
    for turn in range(5):
        now[0] = 100.0 * turn
        assert all(store.put_many([Put(f"{turn}-{n}", Stored(1, STATE), 0) for n in range(50)]))
        n_pages += store._file.execute("PRAGMA page_count").fetchone()
    assert max(n_pages) <= n_pages[0] + 2
    assert len(store) == 50
    store.close()


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "states"
    store = SQLiteStore(path)
    store.claim("s", "one", 60)
    users = {
        f"user-{n}": Stored(7, STATE[n:] * 3, (f"e{n}",), {"s": ("1", f"{n}")}) for n in range(9)
    }
    store.put_many([Put(user, one, ABSENT, ["event"]) for user, one in users.items()])
    store.advance("0042")
    store.close()
    whole, noticed = path.read_bytes(), 0
    for place in random.Random(0).sample(range(100, len(whole)), 100):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            store = SQLiteStore(path)
        except ValueError:
            noticed += 1
            continue
        try:
            assert store.claim("s", "two", 60, instead_of="one").position == "0042"
            found = store.get(list(users))
            assert [store.log(user) for user in users] == [["event"]] * 9
            assert found == list(users.values())
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017
            noticed += 1
        finally:
            store.close()
    assert noticed > 15


def change_pragma(path, **values):
    with sqlite3.connect(path) as file:
        for name, value in values.items():
            file.execute(f"PRAGMA {name} = {value}")
    file.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:]), "no file of users'"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "no file of users'.* or damaged"),
        (lambda path: change_pragma(path, application_id=7), "holds other tables than"),
        (lambda path: change_pragma(path, user_version=1), "has format 1, this ftmamba reads 2"),
    ],
)
def test_another_file_is_refused_and_not_written_to(path, damage, message):
    damage(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        SQLiteStore(path)
    assert path.read_bytes() == content
