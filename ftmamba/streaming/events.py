"""An event that arrives: one JSON object, checked before it is used."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ftmamba.checks import parse_json
from ftmamba.streaming.stores import LONGEST_USER_KEY
from modeling_ftmamba.catalogue import LONGEST_KEY
from modeling_ftmamba.configuration_ftmamba import LARGEST_CONTEXT, near
from modeling_ftmamba.encoders import number_of, seconds_of, text_of
from modeling_ftmamba.processing_ftmamba import Event

LONGEST_EVENT_ID = 512
"""Bytes in UTF-8."""

EVENT_FIELDS = (
    "user_key", "item_key", "event_id", "time", "weight", "context", "item_record", "user_record"
)  # fmt: skip
_LARGEST_LEAD = 86_400
"""Seconds by which the clock of an event's sender may be ahead."""

_EXAMPLE = 'such as {"user_key": "42", "item_key": "50", "time": 893286638, "event_id": "e1"}'


@dataclass(frozen=True)
class UserEvent:
    """An event and its user.

    Attributes:
        user_key: the user.
        event: its item is a key.
        event_id: identifies the event whenever it is delivered; without one, an event that is
            delivered twice counts twice.
        item_record: raw columns of the item, read if its key is not in the catalogue.
        user_record: raw columns of the user, read with a user's first event.
        position: where its source has it, a text that sorts like the source; empty without one.
    """

    user_key: str
    event: Event
    event_id: str = ""
    item_record: Mapping[str, Any] | None = None
    user_record: Mapping[str, Any] | None = None
    position: str = field(default="", compare=False)

    def to_json(self) -> str:
        """Return the event on one line, as `parse_event` reads it."""
        item, seconds, weight, context = self.event
        values = {
            "user_key": self.user_key,
            "item_key": item,
            "event_id": self.event_id or None,
            "time": None if math.isnan(seconds) else seconds,
            "weight": None if math.isnan(weight) else weight,
            "context": {name: x for name, x in context.items() if not math.isnan(x)} or None,
            "item_record": self.item_record,
            "user_record": self.user_record,
        }
        kept = {name: value for name, value in values.items() if value is not None}
        return json.dumps(kept, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Refused:
    """A message that changes no state.

    Attributes:
        kind: a name among `Counts`, such as `late`.
        reason: in words.
        message: as it arrived, or the event in JSON.
    """

    kind: str
    reason: str
    message: str = ""

    def to_json(self) -> str:
        """Return it on one line."""
        return json.dumps(vars(self), ensure_ascii=False)


def parse_event(text: str | bytes, *, event_id: str = "", position: str = "") -> UserEvent:
    """Read an event from a JSON object; unknown fields are ignored, a misspelt one is refused.

    It has `user_key` and `item_key`, and may have `event_id`, `time`, `weight`, `context`,
    `item_record` and `user_record`.

    Args:
        text: the object.
        event_id: for an event without one.
        position: of the event in its source.

    Raises:
        ValueError: it is not a JSON object, a key is missing, or a value is of another type.
    """
    try:
        values = parse_json(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an event must be a JSON object ({error!s:.200}), {_EXAMPLE}") from None
    absent = [name for name in EVENT_FIELDS if name not in values]
    for name in values:
        if name not in EVENT_FIELDS and (guess := near(name, absent, 0.8)):
            raise ValueError(f"an event has no field {name!r:.80}{guess} It has {_EXAMPLE}")
    if values.get("event_id") is not None:
        event_id = _text(values, "event_id", LONGEST_EVENT_ID)
    context = {
        str(name): _number(f"context {name!r:.80}", value)
        for name, value in (_record(values, "context") or {}).items()
        if value is not None
    }
    return UserEvent(
        user_key=_text(values, "user_key", LONGEST_USER_KEY),
        event=Event(
            _text(values, "item_key", LONGEST_KEY),
            _time(values.get("time")),
            _number("weight", values.get("weight")),
            context,
        ),
        event_id=event_id,
        item_record=_record(values, "item_record"),
        user_record=_record(values, "user_record"),
        position=position,
    )


def _text(values: Mapping[str, Any], name: str, longest: int) -> str:
    value = values.get(name)
    with suppress(TypeError, ValueError, OverflowError):
        # JSON can spell a text that UTF-8 cannot, which raises here.
        text = text_of(value) or ""
        if 0 < len(text.encode()) <= longest:
            return text
    raise ValueError(
        f"an event's {name} must be a text of 1 to {longest} bytes, got {value!r:.80}; {_EXAMPLE}"
    )


def _time(value: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        seconds = seconds_of(value)
        if not (seconds < 0 or seconds > time.time() + _LARGEST_LEAD):
            return seconds
    raise ValueError(
        f"an event's time must be seconds since 1970 in UTC or an ISO time, got {value!r:.80}; "
        "not in the future (which would make the user's later events late); divide milliseconds "
        "by 1000, or leave out an unknown time"
    )


def _number(name: str, value: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        number = number_of(value)
        if not abs(number) > LARGEST_CONTEXT:
            return number
    raise ValueError(
        f"an event's {name} must be a finite number, got {value!r:.80}; leave out an unknown one"
    )


def _record(values: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    record = values.get(name)
    if record is not None and not isinstance(record, dict):
        raise ValueError(
            f"an event's {name} must be an object of columns and values, got {record!r:.80}"
        )
    return record
