"""A connection to Redis that comes back, and says in words when it does not."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from ftmamba.hub import Backoff, keep_trying

FIRST_WAIT_SECONDS = 0.1
MOST_WAIT_SECONDS = 5.0
TRIES = 8
TIMEOUT_SECONDS = 10.0

_SCHEMES = ("redis", "rediss", "unix")

Answer = TypeVar("Answer")


@dataclass
class _Passing:
    """What `keep_trying` asks of an error."""

    may_pass: bool
    retry_after: float | None = None


class RedisConnection:
    """Asks a Redis server, again and again while it does not answer.

    Args:
        url: such as `redis://localhost:6379/0`; `rediss://` encrypts.
        tries: so often is it asked before an error is raised; some ten seconds at 8.
        wait: waits so many seconds.
        tell: told of each failure.

    Raises:
        ValueError: the URL is none of Redis.
        ImportError: the client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        tries: int = TRIES,
        wait: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.place = _without_password(url)
        self._redis = _client_package()
        # Not its own retries: they would not tell of it.
        self.client: Any = self._redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),
        )
        self._tries, self._wait, self._tell = tries, wait, tell

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer; the question may be asked several times, also after it was heard.

        Raises:
            ConnectionError: the server does not answer.
            OSError: it cannot do so now, such as for want of memory.
            ValueError: it lets us not, or its key holds something else.
        """
        try:
            return keep_trying(
                question,
                self._failure,
                tries=self._tries,
                backoff=Backoff(FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS),
                wait=self._wait,
                report=self._say,
            )
        except self._redis.exceptions.RedisError as error:
            raise self._in_words(error) from error

    def close(self) -> None:
        """Close it."""
        self.client.close()

    def _failure(self, error: Exception) -> _Passing | None:
        errors = self._redis.exceptions
        passing = (errors.ConnectionError, errors.TimeoutError)
        lasting = (errors.AuthenticationError, errors.AuthorizationError)
        may_pass = isinstance(error, passing) and not isinstance(error, lasting)
        return _Passing(may_pass) if isinstance(error, errors.RedisError) else None

    def _say(self, error: Exception, seconds: float) -> None:
        self._tell(
            f"Redis at {self.place} does not answer ({error!s:.100}); again in {seconds:.1f} s"
        )

    def _in_words(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())[:200]
        failure = self._failure(error)
        if failure is not None and failure.may_pass:
            return ConnectionError(
                f"Redis at {self.place} did not answer {self._tries} times ({reason}); nothing is "
                "lost, for what was not acknowledged comes again: start the server and run this "
                "once more"
            )
        if "maxmemory" in str(error):
            return OSError(
                f"Redis at {self.place} has no memory left ({reason}); nothing is lost: give it "
                "more (maxmemory), or let states expire"
            )
        return ValueError(
            f"Redis at {self.place} refuses ({reason}); check the URL's user, password and number "
            "of the database, and that the keys hold nothing else"
        )


def query_of(url: str, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the options behind a URL's question mark.

    Raises:
        ValueError: one is not allowed.
    """
    values = parse_qs(urlsplit(url).query, keep_blank_values=True)
    for name in values:
        if name not in allowed:
            raise ValueError(
                f"{_without_password(url)} has no option {name!r}; it has: {', '.join(allowed)}"
            )
    return {name: value[-1] for name, value in values.items()}


def without_query(url: str, path: str | None = None) -> str:
    """Return a URL without its options, and perhaps with another path."""
    parts = urlsplit(url)
    return parts._replace(query="", path=parts.path if path is None else path).geturl()


def path_of(url: str) -> list[str]:
    """Return the parts of a URL's path."""
    return [unquote(part) for part in urlsplit(url).path.split("/") if part]


def _without_password(url: str) -> str:
    """Return a URL that can be shown.

    Raises:
        ValueError: it is none of Redis.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"a URL of Redis must begin with {', '.join(f'{name}://' for name in _SCHEMES)}, got "
            f"{parts.scheme!r:.40}; write redis://localhost:6379/0"
        )
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _client_package() -> Any:
    try:
        package = importlib.import_module("redis")
        for name in ("retry", "backoff", "exceptions"):
            importlib.import_module(f"redis.{name}")
    except ImportError as error:
        raise ImportError(
            "Redis needs its client, which is not installed; run pip install 'ftmamba[streaming]'"
        ) from error
    return package
