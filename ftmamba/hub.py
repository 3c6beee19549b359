"""Talking to the Hub: errors in words without tokens, retries, and the download of a checkpoint.

The Hub's client retries single requests, some of them and for seconds only. What is retried here
is a whole push or a whole download, as often as the caller allows.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from random import SystemRandom
from typing import TypeVar

from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

ERROR_OF_CLIENT: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of every error of the HTTP library that the Hub's client uses, whichever it is."""

HIDDEN = "<token>"
RETRIED = frozenset((408, 409, 412, 425, 429, 500, 502, 503, 504))
"""Statuses after which the same request may succeed; 409 and 412: another commit came first."""

TRIES, DOWNLOAD_TRIES = 6, 5
_SHORTEST_TOKEN = 8
_DETECTORS = (
    "azure_storage_key.AzureStorageKeyDetector", "github_token.GitHubTokenDetector",
    "gitlab_token.GitLabTokenDetector", "openai.OpenAIDetector", "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector", "slack.SlackDetector", "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
)  # fmt: skip
"""Of detect-secrets: those that know a form. Those that measure entropy find every hash."""
_DETECTORS_OF_TEXTS = (
    "aws.AWSKeyDetector", "discord.DiscordBotTokenDetector", "jwt.JwtTokenDetector",
    "twilio.TwilioKeyDetector",
)  # fmt: skip
"""Of more common forms, such as some capitals and digits; an item's key may have one by chance."""
_TOKENS = (
    # The Hub's own: user tokens, then those of its OAuth and of its jobs.
    re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"\b(?:hf_oauth_|hf_jwt_|api_org_)[\w.-]{20,}"),
    re.compile(r"(?<=[Bb]earer )[\w.~+/=-]{8,}"),
    # The password in an address: scheme://user:password@host
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    # A signature or a password after its question mark: ?token=...
    re.compile(
        r"(?<=[?&;])[\w.-]*(?:token|key|secret|sig|signature|password|pwd|credential|auth)"
        r"=[^&;\s\"'<>]+",
        re.IGNORECASE,
    ),
    re.compile(r"(?<=_authToken=)[^\s\"']+"),
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY.*?(?:-----END [A-Z0-9 ]*KEY[A-Z ]*-----|\Z)", re.S
    ),
    re.compile(r"\bgithub_pat_\w{22,}|\bAIza[\w-]{35}|\bsk-(?:proj|ant|svcacct)-[\w-]{20,}"),
)
_TOKENS_OF_VALUES = (_TOKENS[0], *_TOKENS[-2:], re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"))
_UNREACHABLE = ("ConnectError", "ConnectTimeout")
_LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"
_REMEDIES = {
    401: f"the token is missing or wrong: {_LOGIN}",
    402: "it asks for a paid plan",
    403: f"the token may not write there: {_LOGIN}, or push with --create_pr",
    404: "check the name and the revision; a private repository needs a token that may read it",
    413: "the files are too large; use a smaller max_shard_size, or leave the catalogue out",
}

Result = TypeVar("Result")


def known_tokens(*more: object) -> tuple[str, ...]:
    """Return the access token of this process, and those of `more` that are texts."""
    found = (get_token(), *more)
    return tuple(
        dict.fromkeys(one for one in found if isinstance(one, str) and len(one) >= _SHORTEST_TOKEN)
    )


def hide_tokens(text: str, tokens: Iterable[str] = ()) -> str:
    """Return the text without these tokens and without anything that looks like one."""
    for token in tokens:
        text = text.replace(token, HIDDEN)
    for pattern in (*_TOKENS, *_patterns(_DETECTORS + _DETECTORS_OF_TEXTS)):
        text = pattern.sub(HIDDEN, text)
    return text


def holds_token(values: Iterable[str]) -> bool:
    """Return whether one of a table's values holds an access token."""
    text = "\n".join(values)
    return any(one.search(text) for one in (*_TOKENS_OF_VALUES, *_patterns(_DETECTORS)))


@cache
def _patterns(detectors: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    found = []
    for detector in detectors:
        module, _, name = detector.partition(".")
        found += getattr(import_module(f"detect_secrets.plugins.{module}"), name).denylist
    return tuple(found)


class HubError(OSError):
    """The Hub refused a request or could not be reached.

    Attributes:
        status: HTTP status of the answer; 0 without one.
        may_pass: whether trying again may help.
        retry_after: seconds that the Hub asks to wait; None where it does not.
    """

    def __init__(
        self, message: str, *, status: int = 0, may_pass: bool, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.may_pass, self.retry_after = status, may_pass, retry_after


def hub_error(error: BaseException, action: str, tokens: Iterable[str] = ()) -> HubError:
    """Return what an error of the Hub's client means, in words and without tokens."""
    cause = root_of(error)
    # An error keeps the whole text of the answer, of which the first lines name the problem.
    reason = " ".join(str(cause).split())[:500] or type(cause).__name__
    status, wait = 0, None
    if isinstance(cause, HfHubHTTPError):
        status, wait = cause.response.status_code, retry_after(cause)
        may_pass = status in RETRIED
        remedy = "try again later" if may_pass else _REMEDIES.get(status, "")
    else:
        may_pass = _is_of_the_network(cause)
        remedy = "check the connection and try again" if may_pass else ""
    message = f"cannot {action}: {reason}{f'; {remedy}' if remedy else ''}"
    return HubError(
        hide_tokens(message, tokens), status=status, may_pass=may_pass, retry_after=wait
    )


def retry_after(error: HfHubHTTPError) -> float | None:
    """Return how many seconds the Hub asks to wait, by `Retry-After` or by its rate limit."""
    headers = error.response.headers
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    if limit:
        return float(limit[1])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def is_of_the_hub(error: BaseException) -> bool:
    """Return whether an error comes from the Hub's client or the network, not from this program."""
    cause = root_of(error)
    return isinstance(cause, HfHubHTTPError) or _is_of_the_network(cause)


def root_of(error: BaseException) -> BaseException:
    """Return the error of the network inside those that the client has put around it."""
    found, inner = error, error.__cause__
    while inner is not None:
        if isinstance(inner, HfHubHTTPError) or _is_of_the_network(inner):
            found = inner
        inner = inner.__cause__
    return error if isinstance(error, HfHubHTTPError) else found


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, ERROR_OF_CLIENT | ConnectionError | TimeoutError)


class Backoff:
    """Waits that double from `first` to `most` seconds, random so that many runs do not meet.

    A wait is never shorter than the Hub's own `Retry-After`.
    """

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        self.first, self.most = first, most
        self._failures = 0
        # Its own: drawing from the global one would change the run.
        self._random = SystemRandom()

    def reset(self) -> None:
        """Start again from the first wait, after a success."""
        self._failures = 0

    def next(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait after one more failure: from half of the step to all of it."""
        step = min(self.most, self.first * 2.0**self._failures)
        self._failures += 1
        return max(step * self._random.uniform(0.5, 1.0), retry_after or 0.0)


def keep_trying(
    action: Callable[[], Result],
    failure: Callable[[Exception], HubError | None],
    *,
    tries: int,
    backoff: Backoff | None = None,
    report: Callable[[Exception, float], None],
) -> Result:
    """Return what `action` returns, trying again while its errors may pass.

    Args:
        action: what is tried.
        failure: reads an error; None for one that is not the Hub's.
        tries: the last error is raised after so many.
        backoff: how long to wait in between.
        report: called with each error and the wait that follows it.
    """
    backoff = backoff or Backoff()
    for left in reversed(range(tries)):
        try:
            return action()
        except Exception as error:
            found = failure(error)
            if found is None or not found.may_pass or not left:
                raise
            seconds = backoff.next(found.retry_after)
            report(error, seconds)
        time.sleep(seconds)
    raise AssertionError("unreachable: the last try returns or raises")


def download_checkpoint(
    repo_id: str, *, revision: str | None, token: str | None, patterns: Sequence[str]
) -> Path:
    """Return the folder of a repository's files, downloaded where they are not in the cache.

    The client continues a file where a cut connection stopped it. What it gives up on, such as a
    Hub that answers 503, is tried again; a file that has arrived is not fetched twice.
    """

    def failure(error: Exception) -> HubError | None:
        if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
            return None
        root = root_of(error)
        # Without any connection there is nothing to wait for.
        return None if type(root).__name__ in _UNREACHABLE else hub_error(root, "load")

    return keep_trying(
        lambda: Path(
            snapshot_download(
                repo_id, revision=revision, token=token, allow_patterns=list(patterns)
            )
        ),
        failure,
        tries=DOWNLOAD_TRIES,
        backoff=Backoff(first=0.5, most=8),
        report=lambda _error, seconds: logger.warning(
            "loading %s was interrupted; next try in %.1f s", repo_id, seconds
        ),
    )
