"""How long to wait before the Hub is asked again."""

import time
from collections.abc import Callable
from random import SystemRandom
from typing import Protocol, TypeVar

FIRST_SECONDS = 1.0
MOST_SECONDS = 60.0
TRIES = 6

Done = TypeVar("Done")


class Passing(Protocol):
    """What an error says about trying again; `hub_cards.failures.HubError` does."""

    may_pass: bool
    retry_after: float | None


class Backoff:
    """Waits that double from failure to failure, each drawn anew so that many runs do not meet.

    The Hub's own `Retry-After` is never undercut.

    Attributes:
        first: seconds of the first step.
    """

    def __init__(self, first: float = FIRST_SECONDS, most: float = MOST_SECONDS) -> None:
        self.first, self._most = first, most
        self._failures = 0
        # Its own: drawing from the global one would change the run.
        self._random = SystemRandom()

    def reset(self) -> None:
        """Start again from the first wait, after a success."""
        self._failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait after one more failure: from half of the step to all of it."""
        step = min(self._most, self.first * 2.0**self._failures)
        self._failures += 1
        wait = step * self._random.uniform(0.5, 1.0)
        return wait if retry_after is None else max(wait, retry_after)


def keep_trying(
    act: Callable[[], Done],
    failure: Callable[[Exception], Passing | None],
    *,
    tries: int = TRIES,
    backoff: Backoff | None = None,
    wait: Callable[[float], None] = time.sleep,
    tell: Callable[[Exception, float], None] = lambda _error, _seconds: None,
) -> Done:
    """Return what `act` returns, asking again while its errors may pass.

    Args:
        act: what is tried.
        failure: what an error says about trying again; None: that it is none of the Hub's.
        tries: the last error is raised after so many.
        backoff: how long to wait in between.
        wait: how to wait.
        tell: told of each error and of the wait behind it.
    """
    backoff = backoff or Backoff()
    for left in reversed(range(tries)):
        try:
            return act()
        except Exception as error:
            passing = failure(error)
            if passing is None or not passing.may_pass or not left:
                raise
            seconds = backoff.next(passing.retry_after)
            tell(error, seconds)
        wait(seconds)
    raise AssertionError("unreachable: the last try returns or raises")
