"""What is Redis's own: its clock, and going away."""

import threading
import time

import pytest

from ftmamba.streaming import Refused
from ftmamba.streaming.redis_backend import (
    RedisConnection,
    RedisStore,
    RedisStreamSource,
    RefusedStream,
)
from ftmamba.streaming.stores import ABSENT, Put, Stored, SupersededError

from .history_checkpoint import make_events

redis = pytest.importorskip("redis")
STATE = Stored(1, bytes(1000), ("e",))


@pytest.fixture
def client(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def store(redis_server):
    store = RedisStore(redis_server.url)
    yield store
    store.close()


@pytest.fixture
def open_source(redis_server):
    """Return a function that opens the stream `events`."""
    opened = []

    def make(**options):
        opened.append(RedisStreamSource(redis_server.url, "events", **options))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def add(client, events, stream="events"):
    return [client.xadd(stream, {"event": event.to_json()}) for event in events]


def test_redis_forgets_after_the_last_put(redis_server, client):
    store = RedisStore(redis_server.url, ttl_seconds=100)
    store.put("u", STATE, ABSENT)
    assert 99_000 < client.pttl("ftmamba:state:u") <= 100_000
    client.pexpire("ftmamba:state:u", 5)
    time.sleep(0.05)
    assert store.get(["u"]) == [None]
    store.put("u", STATE, ABSENT)
    store.close()
    for_ever = RedisStore(redis_server.url)
    assert for_ever.put("u", Stored(2, b""), 1)
    assert client.pttl("ftmamba:state:u") == -1
    for_ever.close()


def test_prefixes_keep_stores_apart_though_they_hold_wildcards(redis_server):
    stores = [RedisStore(redis_server.url, prefix=prefix) for prefix in ("a*:", "ab:", "a[b]:")]
    for store in stores:
        assert store.put("u", STATE, ABSENT)
        assert list(store) == ["u"]
        store.close()


def test_what_others_keep_under_a_key_is_refused(client, store):
    client.set("ftmamba:state:text", "x")
    client.hset("ftmamba:state:odd", mapping={"version": "one"})
    with pytest.raises(ValueError, match=r"refuses \(.*WRONGTYPE"):
        store.get(["text"])
    with pytest.raises(ValueError, match=r"user 'odd' in Redis .* is not a state"):
        store.get(["odd"])


def restarted(server):
    """Stop a server, and start it while it is waited for."""
    server.stop()
    timer = threading.Timer(0.3, server.start)
    timer.start()
    return timer


def test_a_server_that_comes_back_has_lost_nothing(own_redis_server):
    events, reports = make_events(4), []
    with redis.Redis.from_url(own_redis_server.url) as client:
        add(client, events)
    store = RedisStore(own_redis_server.url, report=reports.append)
    source = RedisStreamSource(own_redis_server.url, "events")
    assert all(store.put_many([Put(f"u{row}", STATE, ABSENT) for row in range(50)]))
    first = source.read(2)
    timer = restarted(own_redis_server)
    assert store.put("u0", Stored(2, b"new"), 1)
    timer.join()
    assert "does not answer" in reports[0]
    assert store.get(["u0", "u49"]) == [Stored(2, b"new"), STATE]
    timer = restarted(own_redis_server)
    source.acknowledge(first)
    timer.join()
    assert list(source.read(5).events) == events[2:]
    store.close()
    source.close()


def test_a_server_that_stays_away_is_told_after_some_tries(own_redis_server, monkeypatch):
    waits, reports = [], []
    monkeypatch.setattr("redis.retry.sleep", waits.append)
    url = own_redis_server.url.replace("//", "//user:secret@")
    own_redis_server.stop()
    store = RedisStore(url, retries=3, report=reports.append)
    with pytest.raises(ConnectionError, match=r"did not answer 4 times .* comes again") as caught:
        store.put("u", STATE, ABSENT)
    assert (len(waits), len(reports)) == (3, 4)
    assert waits[0] < waits[2]
    assert "secret" not in f"{caught.value} {reports}"
    store.close()


def test_a_server_that_is_full_or_wants_a_password_is_explained_at_once(
    own_redis_server, monkeypatch
):
    monkeypatch.setattr("redis.retry.sleep", pytest.fail)
    store = RedisStore(own_redis_server.url)
    with redis.Redis.from_url(own_redis_server.url) as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(OSError, match="has no memory left"):
            store.put_many([Put(f"u{row}", STATE, ABSENT) for row in range(5000)])
        store.close()
        client.config_set("requirepass", "right")
    store = RedisStore(own_redis_server.url.replace("//", "//:wrong@"))
    with pytest.raises(ValueError, match=r"refuses .* check the URL's user, password"):
        store.get(["u"])
    store.close()


def test_other_urls_and_a_missing_client_are_explained(monkeypatch):
    for url in ("http://h", "localhost:6379", ""):
        with pytest.raises(ValueError, match="a URL of Redis must begin with redis://"):
            RedisConnection(url)
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ImportError, match=r"pip install 'ftmamba\[streaming\]'"):
        RedisConnection("redis://localhost")


def test_a_stream_gives_every_event_once_in_order_and_what_is_wrong(open_source, client):
    events = make_events(7)
    add(client, events[:4])
    client.xadd("events", {"event": "{"})
    client.xadd("events", {"other": "x"})
    add(client, events[4:])
    entry = client.xadd("events", {"event": '{"user_key": 1, "item_key": "i"}'})
    source = open_source()
    first = source.read(4)
    assert (list(first.events), first.problems) == (events[:4], [])
    source.acknowledge(first)
    second = source.read(100)
    assert list(second.events[:-1]) == events[4:]
    assert second.events[-1].event_id == entry.decode()
    assert "an event must be a JSON object" in second.problems[0].reason
    assert "the entry has no field 'event'" in second.problems[1].reason
    source.acknowledge(second)
    assert source.read(4) is None
    (group,) = client.xinfo_groups("events")
    assert (group["lag"], group["pending"]) == (0, 0)


def test_what_was_not_acknowledged_comes_again(open_source, client):
    events = make_events(6)
    add(client, events)
    before = open_source()
    before.acknowledge(before.read(2))
    before.read(3)
    assert list(open_source().read(9).events) == events[2:]
    client.xgroup_destroy("events", "ftmamba")
    before.acknowledge(before.read(1))
    assert open_source().read(9) is None


def test_entries_that_were_removed_unread_are_told_with_their_number(open_source, client):
    add(client, make_events(9))
    client.xtrim("events", maxlen=8, approximate=False)
    source = open_source()
    source.seek("")  # A new reader has lost nothing.
    source.acknowledge(source.read(2))
    client.xtrim("events", maxlen=3, approximate=False)
    (lost,) = source.read(9).problems
    assert (lost.kind, "3 or more entries of stream events" in lost.reason) == ("removed", True)
    assert len(source.read(2)) == 2
    client.xdel("events", *[entry for entry, _ in client.xrange("events")][-1:])
    assert source.read(9).problems[0].kind == "removed"
    assert source.read(9) is None


@pytest.mark.parametrize("how", ["deleted", "made again", "restored"])
def test_a_stream_that_is_not_the_one_that_was_read_is_told(open_source, client, how):
    entries = add(client, make_events(5))
    source = open_source()
    source.seek("")
    position = source.read(9).position
    client.delete("events")
    if how == "made again":
        add(client, make_events(1))
    if how == "restored":
        client.xadd("events", {"event": "{}"}, id=entries[0])
    words = {"deleted": "is gone", "restored": "as its newest entry, older than"}.get(how, how)
    assert words in source.lost_after(position)
    assert words in source.read(9).problems[0].reason
    assert bool(source.read(9)) == (how == "made again")


@pytest.mark.parametrize("opens", ["store", "source"])
def test_a_server_that_may_evict_is_refused(own_redis_server, opens):
    def act(**options):
        if opens == "source":
            RedisStreamSource(own_redis_server.url, "events").close()
        else:
            store = RedisStore(own_redis_server.url, **options)
            try:
                store.claim("s", "one", 60)
            finally:
                store.close()

    with redis.Redis.from_url(own_redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        act()  # Without a limit nothing is evicted.
        client.config_set("maxmemory", "100mb")
        with pytest.raises(ValueError, match=r"may evict .*policy is allkeys-lru; run CONFIG SET"):
            act()
        client.config_set("maxmemory-policy", "volatile-lru")
        act()
        if opens == "store":
            with pytest.raises(ValueError, match="may evict"):
                act(ttl_seconds=9)


def test_users_whose_keys_vanished_are_counted(store, client):
    store.put_many([Put(f"u{n}", STATE, ABSENT) for n in range(5)])
    store.delete("u0")
    assert store.n_vanished() == 0
    client.delete("ftmamba:state:u1", "ftmamba:state:u2")
    assert store.n_vanished() == 2
    store.claim("s", "one", 60)
    store.advance("5")
    store.forget(positions=True)
    assert (store.n_vanished(), store.claim("s", "one", 60).position) == (0, "")


@pytest.mark.parametrize("how", ["flushed", "older"])
def test_writes_that_a_server_has_lost_are_noticed_by_the_next(store, client, how):
    store.claim("s", "one", 60)
    store.put("u", STATE, ABSENT)
    if how == "flushed":
        client.flushall()
    else:  # As after a failover to a replica that lacks the last write.
        client.hincrby("sources:ftmamba:state:", "writes s", -1)
    with pytest.raises(SupersededError, match="its states are older than what was written"):
        store.put("v", STATE, ABSENT)


def test_a_replica_is_waited_for_and_then_explained(own_redis_server, monkeypatch):
    monkeypatch.setattr("redis.retry.sleep", lambda _seconds: None)
    monkeypatch.setattr("ftmamba.streaming.redis_backend.TIMEOUT_SECONDS", 0.2)
    store = RedisStore(own_redis_server.url, replicas=1)
    with pytest.raises(OSError, match=r"0 of 1 replicas of Redis .* have the states"):
        store.sync()
    with redis.Redis.from_url(own_redis_server.url) as client:
        client.replicaof("127.0.0.1", own_redis_server.port)
        with pytest.raises(OSError, match=r"refuses writes \(.*give the URL of the primary"):
            store.put("u", STATE, ABSENT)
        client.replicaof("NO", "ONE")
    assert store.put("u", STATE, ABSENT)
    store.close()


def test_snapshots_alone_are_reported(own_redis_server):
    reports = []
    with redis.Redis.from_url(own_redis_server.url) as client:
        client.config_set("appendonly", "no")
    store = RedisStore(own_redis_server.url, report=reports.append)
    for _ in range(2):
        store.claim("s", "one", 60)
    assert len(reports) == 1
    assert "has no append-only file" in reports[0]
    store.close()


def test_refused_messages_go_to_a_stream(redis_server, client):
    refused = [Refused("late", "because", "{}"), Refused("malformed", "bad", "\ud800")]
    RefusedStream(redis_server.url, "dead")(refused)
    (_, first), (_, second) = client.xrange("dead")
    assert first == {b"kind": b"late", b"reason": b"because", b"event": b"{}"}
    assert second[b"event"] == b"?"


def test_following_waits_for_more(open_source, client):
    source = open_source(follow=True)
    event = make_events(1)[0]
    later = threading.Timer(0.2, add, [client, [event]])
    later.start()
    batch = source.read(5)
    later.join()
    assert list(batch.events) == [event]
    source.acknowledge(batch)
    assert len(source.read(5)) == 0


def test_a_key_that_holds_no_stream_is_refused(redis_server, client):
    client.set("events", "x")
    with pytest.raises(ValueError, match="WRONGTYPE"):
        RedisStreamSource(redis_server.url, "events")
