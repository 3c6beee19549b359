"""Keep access tokens out of everything that is written, printed or published."""

import logging
import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import get_token

HIDDEN = "<token>"

_SHORTEST = 8
_LOOKS_LIKE_ONE = (
    # The Hub's own: user tokens, then those of its OAuth and of its jobs.
    re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"\b(?:hf_oauth_|hf_jwt_|api_org_)[\w.-]{20,}"),
    re.compile(r"(?<=[Bb]earer )[\w.~+/=-]{8,}"),
    # The password in an address: scheme://user:password@host
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


def known_tokens(*more: object) -> tuple[str, ...]:
    """Return the token that this process would send, and others that are given as texts."""
    found = (get_token(), *more)
    return tuple(
        dict.fromkeys(one for one in found if isinstance(one, str) and len(one) >= _SHORTEST)
    )


def hide_tokens(text: str, tokens: Iterable[str] = ()) -> str:
    """Return the text without these tokens and without anything that looks like one."""
    for token in tokens:
        text = text.replace(token, HIDDEN)
    for pattern in _LOOKS_LIKE_ONE:
        text = pattern.sub(HIDDEN, text)
    return text


def holds_token(path: Path, tokens: Iterable[str]) -> bool:
    """Say whether one of these tokens stands in a file, without reading it into memory."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(token.encode()) >= 0 for token in tokens)


class TokenFilter(logging.Filter):
    """Rewrites log records that hold a token, whichever library they come from."""

    def __init__(self, *tokens: str) -> None:
        super().__init__()
        self.tokens = tokens

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        hidden = hide_tokens(said, known_tokens(*self.tokens))
        if hidden != said:
            record.msg, record.args = hidden, ()
        if record.exc_info or record.exc_text:
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_text = hide_tokens(text, known_tokens(*self.tokens))
        return True


@contextmanager
def tokens_hidden_in_logs(*tokens: str) -> Iterator[None]:
    """Let nothing that looks like a token through the handlers of the root and of the Hub's client.

    Handlers that are added inside the block are not watched.
    """
    watch = TokenFilter(*tokens)
    handlers = [*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers]
    for handler in handlers:
        handler.addFilter(watch)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(watch)
