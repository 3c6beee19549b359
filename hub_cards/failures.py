"""What went wrong on the way to or from the Hub: in words, and whether waiting may cure it."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hub_cards.secrets import hide_tokens

MAY_PASS = frozenset((408, 409, 412, 425, 429, 500, 502, 503, 504))
"""Statuses after which the same request may succeed; 409 and 412: somebody else was quicker."""

_ERROR_OF_CLIENT: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of every error of the HTTP library that the Hub's client uses, whichever it is."""

_LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"
_REMEDIES = {
    400: "see what it asks for",
    401: f"the token is missing or wrong: {_LOGIN}",
    402: "it asks for a paid plan",
    403: f"the token may not write there: {_LOGIN}, or push with --create_pr",
    404: "check the name and the revision; a private repository needs a token that may read it",
    413: "the files are too large; use a smaller max_shard_size, or leave the catalogue out",
}


class HubError(OSError):
    """The Hub could not be had, or refused.

    Attributes:
        status: of the answer; 0 where none came.
        may_pass: whether trying again may help.
        retry_after: seconds that the Hub asks to wait; None where it says nothing.
    """

    def __init__(
        self, message: str, *, status: int = 0, may_pass: bool, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.may_pass = may_pass
        self.retry_after = retry_after


def hub_error(error: BaseException, doing: str, tokens: Iterable[str] = ()) -> HubError:
    """Say in words what an error of the Hub's client means; no token is left in them.

    Args:
        error: what the client raised.
        doing: what was being done, such as "push to 'me/films'".
        tokens: which must not be told.
    """
    cause = root_of(error)
    # An error keeps the whole text of the answer, of which the first lines say what is wrong.
    said = " ".join(str(cause).split())[:500]
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        may_pass = status in MAY_PASS
        remedy = "it may pass: try again later" if may_pass else _REMEDIES.get(status, "")
    else:
        status = 0
        may_pass = _is_of_the_network(cause)
        remedy = "check the connection and try again" if may_pass else ""
    message = f"cannot {doing}: {said or type(cause).__name__}{f'; {remedy}' if remedy else ''}"
    wait = retry_after(cause) if isinstance(cause, HfHubHTTPError) else None
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
    """Say whether an error comes from the Hub's client or the network, not from this program."""
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
    return isinstance(error, _ERROR_OF_CLIENT | ConnectionError | TimeoutError)
