"""The background pusher: order, patience, and that nothing reaches who trains."""

import threading
import time

import pytest

from ftmamba.hub import Backoff, HubError, keep_trying
from hub_cards.training_push import BackgroundPusher, Upload

QUICK = (0.002, 0.01)


class Hub:
    """Takes uploads, or fails as it is told to."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.tried, self.taken, self.discarded, self.times = [], [], [], []
        self.is_open = threading.Event()
        self.is_open.set()

    def upload(self, name, address="main", command="push it"):
        def push():
            self.is_open.wait(10)
            self.tried.append(name)
            self.times.append(time.monotonic())
            if self.failures:
                raise self.failures.pop(0)
            self.taken.append(name)
            return f"http://hub/{name}"

        return Upload(name, address, push, lambda: self.discarded.append(name), command)


def passing(retry_after=None):
    return HubError("503", status=503, may_pass=True, retry_after=retry_after)


def final():
    return HubError("403", status=403, may_pass=False)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def pusher():
    made = BackgroundPusher(backoff=Backoff(*QUICK))
    yield made
    made.close(0)


def test_uploads_arrive_in_order_and_are_discarded(pusher):
    hub = Hub()
    for name in ("a", "b", "c"):
        pusher.put(hub.upload(name))
        until(lambda name=name: name in hub.discarded)
    assert pusher.close(5) == []
    assert hub.taken == hub.discarded == ["a", "b", "c"]


def test_of_what_waits_only_the_newest_is_kept(pusher, caplog):
    hub = Hub()
    hub.is_open.clear()
    pusher.put(hub.upload("first"))
    until(lambda: pusher._sending is not None)
    for name in ("second", "third", "fourth"):
        pusher.put(hub.upload(name))
    assert len(pusher._waiting) == 1
    assert hub.discarded == ["second", "third"]
    hub.is_open.set()
    assert pusher.close(5) == []
    assert hub.taken == ["first", "fourth"]


def test_different_addresses_do_not_replace_each_other(pusher):
    hub = Hub()
    hub.is_open.clear()
    for name, address in (("a", "main"), ("b", "checkpoints"), ("c", "main")):
        pusher.put(hub.upload(name, address))
    hub.is_open.set()
    assert pusher.close(5) == []
    assert hub.taken[-2:] in (["b", "c"], ["c", "b"])


def test_putting_never_waits_for_the_hub(pusher):
    hub = Hub()
    hub.is_open.clear()
    start = time.monotonic()
    for number in range(100):
        pusher.put(hub.upload(f"{number}"))
    assert time.monotonic() - start < 1
    hub.is_open.set()


def test_what_may_pass_is_tried_again_until_it_arrives(pusher, caplog):
    hub = Hub(*[passing() for _ in range(4)])
    pusher.put(hub.upload("a"))
    assert pusher.close(5) == []
    assert hub.tried == ["a"] * 5
    assert caplog.text.count("next try in") == 4


def test_the_hubs_own_wait_is_kept(pusher):
    hub = Hub(passing(retry_after=0.2))
    pusher.put(hub.upload("a"))
    assert pusher.close(5) == []
    assert hub.times[1] - hub.times[0] >= 0.2


def test_a_newer_state_takes_the_place_of_one_that_failed(pusher):
    hub = Hub(passing(retry_after=0.2))
    pusher.put(hub.upload("a"))
    until(lambda: hub.tried == ["a"])
    pusher.put(hub.upload("b"))
    assert pusher.close(5) == []
    assert (hub.taken, hub.discarded) == (["b"], ["a", "b"])


def test_what_is_refused_waits_for_the_next_state_and_not_for_the_clock(pusher):
    hub = Hub(final())
    pusher.put(hub.upload("a"))
    until(lambda: hub.tried == ["a"] and pusher._sending is None)
    time.sleep(0.05)
    assert hub.tried == ["a"]
    pusher.put(hub.upload("b"))
    assert pusher.close(5) == []
    assert hub.tried == ["a", "b"]


def test_what_was_refused_is_tried_once_more_at_the_end(pusher):
    hub = Hub(final(), final())
    pusher.put(hub.upload("a"))
    until(lambda: hub.tried == ["a"] and pusher._sending is None)
    start = time.monotonic()
    ((missing, reason),) = pusher.close(30)
    assert time.monotonic() - start < 5
    assert hub.tried == ["a", "a"]
    assert (missing.name, reason) == ("a", "403")
    assert hub.discarded == []


def test_a_hub_that_never_answers_is_given_up(pusher):
    hub = Hub()
    hub.is_open.clear()
    pusher.put(hub.upload("a"))
    pusher.put(hub.upload("b", "checkpoints"))
    until(lambda: pusher._sending is not None)
    start = time.monotonic()
    missing = pusher.close(0.1)
    assert 0.1 <= time.monotonic() - start < 2
    assert {one.name for one, _ in missing} == {"a", "b"}
    hub.is_open.set()


def test_the_end_does_not_sit_out_a_wait_of_its_own(pusher):
    pusher._backoff = Backoff(first=60, most=60)
    hub = Hub(passing())
    pusher.put(hub.upload("a"))
    until(lambda: hub.tried == ["a"] and pusher._sending is None)
    start = time.monotonic()
    assert pusher.close(5) == []
    assert time.monotonic() - start < 2
    assert hub.taken == ["a"]


def test_a_bug_in_pushing_is_told_and_not_raised(pusher, caplog):
    hub = Hub(ZeroDivisionError("a bug"))
    pusher.put(hub.upload("a"))
    assert [one.name for one, _ in pusher.close(5)] == ["a"]
    assert "ZeroDivisionError('a bug')" in caplog.text


def test_what_nobody_would_miss_is_tried_once(pusher):
    hub = Hub(passing())
    pusher.put(hub.upload("a", command=""))
    assert pusher.close(5) == []
    assert hub.tried == ["a"]


def test_waits_double_up_to_the_most_and_vary():
    backoff = Backoff(first=1, most=8)
    waits = [[backoff.next() for _ in range(6)] for _ in range(20) if backoff.reset() is None]
    steps = (1, 2, 4, 8, 8, 8)
    for row in waits:
        assert all(step / 2 <= wait <= step for step, wait in zip(steps, row, strict=True))
    assert len({row[0] for row in waits}) > 10
    assert backoff.next(retry_after=100) == 100


def test_trying_by_hand_ends_with_the_last_error():
    waited = []
    hub = Hub(*[passing() for _ in range(9)])
    with pytest.raises(HubError):
        keep_trying(hub.upload("a").push, lambda error: error, tries=3, wait=waited.append)
    assert len(hub.tried) == 3
    assert len(waited) == 2
    hub.failures = [final()]
    with pytest.raises(HubError):
        keep_trying(hub.upload("b").push, lambda error: error, wait=waited.append)
    assert hub.tried[3:] == ["b"]
    hub.failures = [ValueError("mine")]
    with pytest.raises(ValueError, match="mine"):
        keep_trying(hub.upload("c").push, lambda _error: None, wait=waited.append)
