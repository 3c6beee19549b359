"""The background pusher: order, waits, and that nothing reaches the training."""

import threading
import time

import pytest

from ftmamba.hub import Backoff, HubError, keep_trying
from hub_cards.training_push import BackgroundPusher, Upload


class Hub:
    """Receives uploads, or fails as it is asked to."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.tried, self.arrived, self.discarded, self.times = [], [], [], []
        self.is_open = threading.Event()
        self.is_open.set()

    def upload(self, name, branch="main", command="push it"):
        def push():
            self.is_open.wait(10)
            self.tried.append(name)
            self.times.append(time.monotonic())
            if self.failures:
                raise self.failures.pop(0)
            self.arrived.append(name)
            return f"http://hub/{name}"

        return Upload(name, branch, push, lambda: self.discarded.append(name), command)


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
    made = BackgroundPusher(backoff=Backoff(0.002, 0.01))
    yield made
    made.close(0)


def test_uploads_arrive_in_order_and_are_discarded(pusher):
    hub = Hub()
    for name in ("a", "b", "c"):
        pusher.put(hub.upload(name))
        until(lambda name=name: name in hub.discarded)
    assert pusher.close(5) == []
    assert hub.arrived == hub.discarded == ["a", "b", "c"]


def test_of_what_waits_for_a_branch_only_the_newest_is_kept(pusher):
    hub = Hub()
    hub.is_open.clear()
    pusher.put(hub.upload("first"))
    until(lambda: pusher._sending is not None)
    start = time.monotonic()
    for number in range(100):
        pusher.put(hub.upload(f"{number}"))
    pusher.put(hub.upload("other", "checkpoints"))
    assert time.monotonic() - start < 1
    assert len(pusher._waiting) == 2
    assert hub.discarded == [f"{number}" for number in range(99)]
    hub.is_open.set()
    assert pusher.close(5) == []
    assert hub.arrived[0] == "first"
    assert sorted(hub.arrived[1:]) == ["99", "other"]


def test_what_may_pass_is_tried_again_until_it_arrives(pusher, caplog):
    hub = Hub(*[passing() for _ in range(4)])
    pusher.put(hub.upload("a"))
    assert pusher.close(5) == []
    assert hub.tried == ["a"] * 5
    assert caplog.text.count("next try in") == 4


def test_a_newer_state_replaces_one_that_failed_and_the_hubs_own_wait_is_kept(pusher):
    hub = Hub(passing(retry_after=0.2))
    pusher.put(hub.upload("a"))
    until(lambda: hub.tried == ["a"])
    pusher.put(hub.upload("b"))
    assert pusher.close(5) == []
    assert (hub.arrived, hub.discarded) == (["b"], ["a", "b"])
    assert hub.times[1] - hub.times[0] >= 0.2


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
    assert (hub.tried, hub.discarded) == (["a", "a"], [])
    assert (missing.name, reason) == ("a", "403")


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
    assert hub.arrived == ["a"]


def test_a_bug_in_pushing_is_logged_and_not_raised(pusher, caplog):
    pusher.put(Hub(ZeroDivisionError("a bug")).upload("a"))
    assert [one.name for one, _ in pusher.close(5)] == ["a"]
    assert "ZeroDivisionError('a bug')" in caplog.text


def test_an_upload_without_a_command_is_tried_once(pusher):
    hub = Hub(passing())
    pusher.put(hub.upload("a", command=""))
    assert pusher.close(5) == []
    assert hub.tried == ["a"]


def test_waits_double_up_to_the_most_and_vary():
    backoff = Backoff(first=1, most=8)
    waits = [[backoff.next() for _ in range(6)] for _ in range(20) if backoff.reset() is None]
    for row in waits:
        for step, wait in zip((1, 2, 4, 8, 8, 8), row, strict=True):
            assert step / 2 <= wait <= step
    assert len({row[0] for row in waits}) > 10
    assert backoff.next(retry_after=100) == 100


def test_trying_again_ends_with_the_last_error(monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for failures, n_tried, n_waits in (
        ([passing() for _ in range(9)], 3, 2),
        ([final()], 1, 0),
        ([ValueError("mine")], 1, 0),
    ):
        hub = Hub(*failures)
        with pytest.raises(type(failures[0])):
            keep_trying(
                hub.upload("a").push,
                lambda error: error if isinstance(error, HubError) else None,
                tries=3, report=lambda _, wait: waited.append(wait),
            )  # fmt: skip
        assert (len(hub.tried), len(waited)) == (n_tried, n_waits)
        waited.clear()
