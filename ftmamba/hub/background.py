"""Push in a thread of its own: training goes on, whatever the Hub does."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ftmamba.hub.backoff import Backoff
from hub_cards.failures import HubError
from hub_cards.secrets import hide_tokens, known_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parcel:
    """Something to push.

    Attributes:
        name: for people, such as "step 1200, epoch 3".
        address: parcels of one address replace each other.
        push: sends it and returns its address on the Hub; raises `HubError`.
        discard: called once nothing needs it any more: it is pushed, or a newer one waits.
        command: pushes it by hand; without one it is tried once, for nobody would miss it.
    """

    name: str
    address: str
    push: Callable[[], str]
    discard: Callable[[], None]
    command: str


@dataclass(frozen=True)
class Missing:
    """A parcel that did not arrive, and why."""

    parcel: Parcel
    why: str


class BackgroundPusher:
    """Sends parcels one after the other; of those that wait for one address, only the newest.

    What fails waits and is tried again, sooner or later; what the Hub refuses for good is tried
    again with the next parcel, and at the end. Nothing that goes wrong reaches the caller.
    """

    def __init__(self, *, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._changed = threading.Condition()
        self._waiting: dict[str, Parcel] = {}
        self._why: dict[str, str] = {}
        self._refused: set[str] = set()
        self._sending: Parcel | None = None
        self._not_before = 0.0
        self._asked_to_wait = False
        self._deadline: float | None = None
        self._stopped = False
        # A daemon: a Hub that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="push-to-hub", daemon=True)
        self._thread.start()

    def put(self, parcel: Parcel) -> None:
        """Let a parcel wait for its turn, in the place of an older one for the same address."""
        with self._changed:
            replaced = self._waiting.pop(parcel.address, None)
            self._waiting[parcel.address] = parcel
            self._refused.discard(parcel.address)
            self._changed.notify_all()
        if replaced is not None:
            logger.info("not pushed, for a newer state takes its place: %s", replaced.name)
            replaced.discard()

    def close(self, seconds: float) -> list[Missing]:
        """Wait until everything is pushed, at most so long; return what is missing."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._refused.clear()
            if not self._asked_to_wait:
                self._not_before = 0.0
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            left = dict(self._waiting)
            if self._sending is not None and self._sending.address not in left:
                left[self._sending.address] = self._sending
        told = "the Hub had not answered when the wait was over"
        return [Missing(one, self._why.get(address, told)) for address, one in left.items()]

    def _work(self) -> None:
        while (parcel := self._next()) is not None:
            self._send(parcel)

    def _next(self) -> Parcel | None:
        """Return the parcel whose turn has come; None where there is nothing left to do."""
        with self._changed:
            while not self._stopped:
                ready = [one for one in self._waiting.values() if one.address not in self._refused]
                if not ready and self._deadline is not None:
                    return None
                wait = self._not_before - time.monotonic() if ready else None
                if wait is not None and wait <= 0:
                    self._sending = self._waiting.pop(ready[0].address)
                    return self._sending
                self._changed.wait(wait)
        return None

    def _send(self, parcel: Parcel) -> None:
        try:
            url = parcel.push()
        except HubError as error:
            self._fail(parcel, error)
        except Exception as error:
            logger.debug("pushing failed", exc_info=True)
            told = hide_tokens(f"cannot push {parcel.name}: {error!r}", known_tokens())
            self._fail(parcel, HubError(told, may_pass=False))
        else:
            self._backoff.reset()
            with self._changed:
                self._sending = None
                self._why.pop(parcel.address, None)
            logger.info("on the Hub: %s (%s)", parcel.name, url)
            parcel.discard()

    def _fail(self, parcel: Parcel, error: HubError) -> None:
        """Let a parcel wait again, unless a newer one has come meanwhile or nobody misses it."""
        with self._changed:
            self._sending = None
            self._why[parcel.address] = str(error)
            is_newest = bool(parcel.command) and parcel.address not in self._waiting
            if is_newest:
                self._waiting[parcel.address] = parcel
            wait = 0.0
            if error.may_pass:
                wait = self._pause(error)
            elif is_newest:
                self._refused.add(parcel.address)
        logger.warning("%s (%s)", error, self._told(error, wait))
        if not is_newest:
            parcel.discard()

    def _told(self, error: HubError, wait: float) -> str:
        if error.may_pass:
            return f"next try in {wait:.0f} s"
        return (
            "training goes on; next try with the next save"
            if self._deadline is None
            else "last try"
        )

    def _pause(self, error: HubError) -> float:
        """Say how long nothing is sent: as the Hub asks, else such that one more try fits in."""
        wait = self._backoff.next(error.retry_after)
        if self._deadline is not None and error.retry_after is None:
            left = self._deadline - time.monotonic()
            wait = max(min(wait, left / 2), self._backoff.first)
        self._asked_to_wait = error.retry_after is not None
        self._not_before = time.monotonic() + wait
        return wait
