"""One contract for every store."""

import threading
from itertools import count

import pytest

from ftmamba.streaming.mapped_file import MappedFileStore
from ftmamba.streaming.redis_backend import RedisStore
from ftmamba.streaming.stores import ABSENT, MemoryStore, Put, Stored, next_version

STATE = bytes(range(256)) * 4


@pytest.fixture(params=["memory", "file", "redis"])
def make_store(request, tmp_path):
    """Return a function that opens a store."""
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")

    def make(**options):
        store = {
            "memory": lambda: MemoryStore(**options),
            "file": lambda: MappedFileStore(tmp_path / "states.bin", **options),
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


def test_memory_drops_the_user_who_was_not_used_for_longest():
    store = MemoryStore(most_users=2)
    for user in "ab":
        store.put(user, Stored(1, b""), ABSENT)
    store.get(["a"])
    store.put("c", Stored(1, b""), ABSENT)
    assert sorted(store) == ["a", "c"]
