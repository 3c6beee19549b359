"""Where events come from: one contract for every kind of source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ftmamba.streaming.events import Event


@dataclass(frozen=True)
class Batch:
    """Events that a source has delivered and waits to have acknowledged.

    Attributes:
        events: in the order in which they came.
        problems: what is wrong with each message that is no event, and where it stands.
        position: what the source needs to acknowledge it.
    """

    events: Sequence[Event]
    problems: Sequence[str] = field(default_factory=tuple)
    position: Any = None

    def __len__(self) -> int:
        return len(self.events) + len(self.problems)


class Source(Protocol):
    """Delivers every event at least once: what was not acknowledged comes again."""

    def read(self, most_events: int) -> Batch | None:
        """Return up to so many events.

        Returns:
            An empty batch if none has come for a moment; None at the end, where there is one.
        """
        ...

    def acknowledge(self, batch: Batch) -> None:
        """Say that a batch, and all before it, need not come again."""
        ...

    def close(self) -> None:
        """Give back what the source holds. Twice does no harm."""
        ...
