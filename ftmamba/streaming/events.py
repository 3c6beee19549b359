"""What happens: a user took an item; as one JSON object, checked before anything is made of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftmamba.checks import parse_json
from ftmamba.streaming.stores import LONGEST_USER_KEY
from modeling_ftmamba.configuration_ftmamba import LARGEST_CONTEXT
from modeling_ftmamba.encoders import LONGEST_KEY

LONGEST_EVENT_ID = 128
"""Characters."""

_LATEST = 2**40
_LARGEST_WEIGHT = 1e30
_HOW = 'write it as {"user_key": "42", "item_key": "50", "time": 893286638, "event_id": "e1"}'


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        user_key: who.
        item_key: what.
        event_id: the same whenever the event is delivered, and of no other event; empty where
            there is none, then an event that comes twice counts twice.
        time: UTC epoch seconds, or None where it is not known.
        weight: such as a rating, or None.
        context: numbers by the names of the columns that the model's history has beside its
            events, or None; absent or NaN where unknown.
        item_record: raw columns of the item, for one that the catalogue has not.
        user_record: raw columns of the user, for one of whom nothing is known yet.
    """

    user_key: str
    item_key: str
    event_id: str = ""
    time: int | None = None
    weight: float | None = None
    item_record: Mapping[str, Any] | None = None
    user_record: Mapping[str, Any] | None = None
    context: Mapping[str, float] | None = None

    def to_json(self) -> str:
        """Return the event on one line, as `parse_event` reads it."""
        values = {name: value for name, value in vars(self).items() if value not in (None, "")}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)


def parse_event(text: str | bytes, *, event_id: str = "") -> Event:
    """Read an event from a JSON object with the fields of `Event`; further ones are ignored.

    Args:
        text: the object.
        event_id: for an event that brings none.

    Raises:
        ValueError: it is no JSON object, a key is missing, or a value is of another type.
    """
    try:
        values = parse_json(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an event must be a JSON object ({error!s:.200}); {_HOW}") from None
    return Event(
        user_key=_key(values, "user_key", LONGEST_USER_KEY),
        item_key=_key(values, "item_key", LONGEST_KEY),
        event_id=_event_id(values.get("event_id"), event_id),
        time=_time(values.get("time")),
        weight=_weight(values.get("weight")),
        item_record=_record(values, "item_record"),
        user_record=_record(values, "user_record"),
        context=_context(values),
    )


def _key(values: Mapping[str, Any], name: str, longest: int) -> str:
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**40:
        return str(value)
    if not isinstance(value, str) or not 0 < len(_bytes(value)) <= longest:
        raise ValueError(
            f"an event's {name} must be a text of 1 to {longest} bytes, got {value!r:.80}; {_HOW}"
        )
    return value


def _bytes(text: str) -> bytes:
    """Return a text in UTF-8; JSON can spell one that has none, which counts as empty."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b""


def _event_id(value: Any, otherwise: str) -> str:
    if value is None:
        return otherwise
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > LONGEST_EVENT_ID or not _bytes(value):
        raise ValueError(
            f"an event's event_id must be a text of 1 to {LONGEST_EVENT_ID} characters, got "
            f"{value!r:.80}; leave it out where there is none"
        )
    return value


def _time(value: Any) -> int | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < _LATEST:
        raise ValueError(
            f"an event's time must be seconds since 1970 in UTC, 0 or more, got {value!r:.80}; "
            "divide milliseconds by 1000, or leave it out where it is not known"
        )
    return int(value)


def _weight(value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and abs(value) <= _LARGEST_WEIGHT):
        raise ValueError(
            f"an event's weight must be a number, got {value!r:.80}; leave it out where there is "
            "none"
        )
    return float(value)


def _context(values: Mapping[str, Any]) -> dict[str, float] | None:
    context = _record(values, "context")
    if context is None:
        return None
    for name, value in context.items():
        is_number = value is None or isinstance(value, int | float)
        if not is_number or abs(value or 0) > LARGEST_CONTEXT:
            raise ValueError(
                f"an event's context must have a finite number in {name!r:.80}, got {value!r:.80}; "
                "leave it out where it is not known"
            )
    return {name: float(value) for name, value in context.items() if value is not None}


def _record(values: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    record = values.get(name)
    if record is not None and not isinstance(record, dict):
        raise ValueError(
            f"an event's {name} must be an object of columns and values, got {record!r:.80}"
        )
    return record
