"""Users' states in Redis, which many processes on many machines may share."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ftmamba.streaming.redis_connection import TRIES, RedisConnection
from ftmamba.streaming.store import Put, Stored, check_key, check_puts, check_ttl

PREFIX = "ftmamba:state:"

_AT_A_TIME = 256
_FIELDS = ("version", "state", "event_ids")
# Versions are compared as texts: a number of Lua has but 53 bits.
_COMPARE_AND_SWAP = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3], 'event_ids', ARGV[4])
if ARGV[5] == '0' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return 1
"""


class RedisStore:
    """A store that outlives its processes, as long as the server keeps what it has (AOF, RDB).

    A state that was put while the connection broke may be there though `put` is tried again and
    finds another version: read the user again then, as after every refusal.

    Args:
        url: such as `redis://localhost:6379/0`.
        prefix: of all keys; stores of different models need different ones.
        ttl_seconds: Redis forgets a user so long after the last put; 0 for never.
        tries: see `RedisConnection`.
        wait: waits so many seconds between them.
        tell: told of each failure.

    Raises:
        ValueError: the URL is none of Redis.
        ImportError: the client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = PREFIX,
        ttl_seconds: float = 0,
        tries: int = TRIES,
        wait: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._ttl_milliseconds = max(1, round(1000 * check_ttl(ttl_seconds))) if ttl_seconds else 0
        self._prefix = prefix.encode()
        self._connection = RedisConnection(url, tries=tries, wait=wait, tell=tell)
        self._client = self._connection.client
        self._swap = self._client.register_script(_COMPARE_AND_SWAP)

    def get(self, user_keys: Sequence[str]) -> list[Stored | None]:
        keys = [self._prefix + check_key(key) for key in user_keys]
        answers = self._piped(lambda pipe, key: pipe.hmget(key, _FIELDS), keys)
        return [self._stored(key, *answer) for key, answer in zip(user_keys, answers, strict=True)]

    def put(self, user_key: str, stored: Stored, expected_version: int) -> bool:
        return self.put_many([Put(user_key, stored, expected_version)])[0]

    def put_many(self, puts: Sequence[Put]) -> list[bool]:
        check_puts(puts)
        return [answer == 1 for answer in self._piped(self._add_swap, puts)]

    def delete(self, user_key: str) -> bool:
        key = self._prefix + check_key(user_key)
        return bool(self._connection.ask(lambda: self._client.delete(key)))

    def sync(self) -> None:
        """Do nothing: what Redis does against a loss of power is its own setting (appendfsync)."""

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return iter([key.decode() for key in self._connection.ask(self._keys)])

    def close(self) -> None:
        self._connection.close()

    def _keys(self) -> set[bytes]:
        pattern = b"".join(
            b"\\" + bytes([byte]) if byte in b"*?[]\\" else bytes([byte]) for byte in self._prefix
        )
        found = self._client.scan_iter(match=pattern + b"*", count=1000)
        return {key.removeprefix(self._prefix) for key in found}

    def _add_swap(self, pipe: Any, put: Put) -> None:
        stored = put.stored
        arguments = [
            str(put.expected_version),
            str(stored.version),
            stored.state,
            json.dumps(stored.event_ids),
            str(self._ttl_milliseconds),
        ]
        self._swap(keys=[self._prefix + check_key(put.user_key)], args=arguments, client=pipe)

    def _piped(self, add: Callable[[Any, Any], Any], questions: Sequence[Any]) -> list[Any]:
        """Ask many questions on one way there and back, each of them atomic by itself."""
        answers: list[Any] = []
        for first in range(0, len(questions), _AT_A_TIME):
            some = questions[first : first + _AT_A_TIME]
            answers += self._connection.ask(partial(self._ask_all, add, some))
        return answers

    def _ask_all(self, add: Callable[[Any, Any], Any], questions: Sequence[Any]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipe:
            for question in questions:
                add(pipe, question)
            answers: list[Any] = pipe.execute()
        return answers

    def _stored(
        self, user_key: str, version: bytes | None, state: bytes | None, event_ids: bytes | None
    ) -> Stored | None:
        if version is None:
            return None
        try:
            return Stored(int(version), state or b"", tuple(json.loads(event_ids or b"")))
        except ValueError as error:
            raise ValueError(
                f"what Redis at {self._connection.place} keeps of user {user_key!r:.80} is no "
                f"state ({error!s:.100}); give the store another prefix, or delete the key"
            ) from None
