"""What a column is: the schema shared by loader, processor, model and card.

A record is encoded into at most four tensors a tower, in column order within each:

    numeric       float32 (B, P)  one slot a `numeric` column, NaN = missing
    category_ids  int64   (B, C)  one slot a `categorical` column
    set_ids       int64   (B, S)  `max_length` slots a `categories` column, padded with 0
    dense         float32 (B, Q)  `dimension` slots a `vector` or `timestamp` column, NaN = missing

A column of kind `history`, of the user tower alone, is in none of them: its events come beside.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

PADDING_ID = 0
MISSING_ID = 1
UNSEEN_ID = 2
N_SPECIAL_IDS = 3

HISTORY = "history"
KINDS = ("numeric", "categorical", "categories", "timestamp", "vector", HISTORY)
SCALINGS = ("standard", "quantile", "none")
EVENT_FEATURES = ("gap", "weight")
"""What an event feature may be; any other name is a numeric column of the interactions."""

EVENT_KEYS = ("item", "time", "weight")
"""What any event given as a dict may have."""

LARGEST_CONTEXT = 1e30
"""Of a number in a column of the interactions that is an event feature, either way."""

SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 2 * LARGEST_CONTEXT
"""Of a standard deviation that numbers are divided by, in 32 bits."""

TIMESTAMP_DIMENSION = 7
"""Standardised time, then sine and cosine of the hour of day, day of week and day of year."""

MOST_COLUMNS = 4096
MOST_SLOTS = 2**16
"""Columns of a tower, and what they may take together in the tensors of one record."""

MOST_IDS = 2**31 - 1
MOST_NAME = 1000
"""Characters of a column's name."""

_FARTHEST_EDGE = 1e300

TENSOR_OF_KIND = {
    "numeric": "numeric",
    "categorical": "category_ids",
    "categories": "set_ids",
    "timestamp": "dense",
    "vector": "dense",
}


@dataclass(frozen=True)
class Column:
    """One column of a table of users or items.

    Attributes:
        name: the column's name in the raw table and in a raw record.
        kind: one of `KINDS`.
        min_count: values seen less often in training count as rare.
        max_vocabulary: keep at most so many values, the most frequent; 0 keeps all.
        hash_buckets: rare and unseen values share so many extra ids; 0 sends them to `UNSEEN_ID`.
        separator: splits a text into the members of a set (`categories` given as one string).
        scaling: of a numeric column, one of `SCALINGS`.
        popularity_days: if positive, the column is no part of the raw table: it holds the natural
            logarithm of 1 + the item's interactions in so many days before the row's time.
        vocabulary_size: fitted; ids 0..2 are special, then values, then hash buckets.
        max_length: fitted where 0; members kept of a set. Of a history: the newest events kept,
            0 keeps all.
        dimension: fitted; width of a vector or timestamp.
        edges: fitted; bin edges b_0 < ... < b_T of the scaled value, for PLE.
        event_features: of a history, what stands beside each event: some of `EVENT_FEATURES`, and
            names of numeric columns of the interactions (its context). A gap is log(1 + seconds
            since the event before), 0 for the first; the others, such as a rating or a price, are
            as they are.
        event_scales: fitted; of each event feature the mean and the standard deviation by which
            the model standardises it, (0, 1) for `EVENT_FEATURES`. Empty, all are read as they are.
    """

    name: str
    kind: str
    min_count: int = 1
    max_vocabulary: int = 0
    hash_buckets: int = 0
    separator: str = ""
    scaling: str = "standard"
    popularity_days: int = 0
    vocabulary_size: int = 0
    max_length: int = 0
    dimension: int = 0
    edges: tuple[float, ...] = ()
    event_features: tuple[str, ...] = ()
    event_scales: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MOST_NAME:
            raise ValueError(
                f"a column's name must be a text of 1 to {MOST_NAME} characters, got "
                f"{self.name!r:.80}; give the name of a column of the table"
            )
        object.__setattr__(self, "edges", self._parsed_edges())
        object.__setattr__(self, "event_features", self._parsed_event_features())
        object.__setattr__(self, "event_scales", self._parsed_event_scales())
        for field, value, allowed in (
            ("kind", self.kind, KINDS),
            ("scaling", self.scaling, SCALINGS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"column {self.name!r}: {field} must be one of {', '.join(allowed)}, "
                    f"got {value!r:.80}{near(value, allowed)}"
                )
        for field in ("min_count", "max_vocabulary", "hash_buckets", "popularity_days",
                      "vocabulary_size", "max_length", "dimension"):  # fmt: skip
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_IDS:
                raise ValueError(
                    f"column {self.name!r}: {field} must be a whole number from 0 to {MOST_IDS}, "
                    f"got {value!r:.80}"
                )
        if not isinstance(self.separator, str):
            raise ValueError(
                f"column {self.name!r}: separator must be a text, got {self.separator!r:.80}"
            )
        if self.popularity_days and self.kind != "numeric":
            raise ValueError(
                f"column {self.name!r}: popularity_days needs kind 'numeric', got {self.kind!r}"
            )

    def _parsed_edges(self) -> tuple[float, ...]:
        edges = self.edges
        numbers = [
            float(edge)
            for edge in (edges if isinstance(edges, list | tuple) else ())
            if isinstance(edge, int | float) and abs(edge) < _FARTHEST_EDGE
        ]
        rise = all(low < high for low, high in pairwise(numbers))
        if not isinstance(edges, list | tuple) or len(numbers) != len(edges) or not rise:
            raise ValueError(
                f"column {self.name!r}: edges must be a list of finite numbers that rise, got "
                f"{edges!r:.80}"
            )
        # One edge would bound no bin.
        return tuple(numbers) if len(numbers) > 1 else ()

    def _parsed_event_features(self) -> tuple[str, ...]:
        given = self.event_features
        names = given if isinstance(given, list | tuple) else (given,)
        texts = all(isinstance(name, str) and 0 < len(name) <= MOST_NAME for name in names)
        if names is not given or not texts or len(set(names)) < len(names):
            raise ValueError(
                f"column {self.name!r}: event_features must be a list of "
                f"{', '.join(EVENT_FEATURES)} and names of numeric columns of the interactions, "
                f"each once, got {given!r:.80}"
            )
        if len(names) > MOST_COLUMNS:
            raise ValueError(
                f"column {self.name!r} has {len(names)} event_features, of {MOST_COLUMNS} at most"
            )
        for name in names:
            if name in EVENT_KEYS and name not in EVENT_FEATURES:
                raise ValueError(
                    f"column {self.name!r}: event_features cannot name {name!r}, which every event "
                    "has already; give the numbers a column of another name"
                )
        if names and self.kind != HISTORY:
            raise ValueError(
                f"column {self.name!r}: event_features needs kind 'history', got {self.kind!r:.80}"
            )
        return tuple(names)

    def _parsed_event_scales(self) -> tuple[tuple[float, float], ...]:
        given = self.event_scales
        scales = [
            (float(pair[0]), float(pair[1]))
            for pair in (given if isinstance(given, list | tuple) else ())
            if isinstance(pair, list | tuple) and len(pair) == 2 and _is_scale(*pair)
        ]
        fits = len(scales) in (0, len(self.event_features))
        if not isinstance(given, list | tuple) or len(scales) != len(given) or not fits:
            raise ValueError(
                f"column {self.name!r}: event_scales must be a list of [mean, standard deviation], "
                f"one for each of event_features ({len(self.event_features)}) or none, the latter "
                f"above 0, got {given!r:.80}"
            )
        return tuple(scales)

    @property
    def context(self) -> tuple[str, ...]:
        """Event features that are columns of the interactions."""
        return tuple(name for name in self.event_features if name not in EVENT_FEATURES)

    @property
    def width(self) -> int:
        """Slots of this column in its tensor."""
        if self.kind == HISTORY:
            return 0
        if self.kind == "categories":
            return self.max_length
        if self.kind in ("timestamp", "vector"):
            return self.dimension
        return 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON or YAML."""
        defaults = {f.name: f.default for f in fields(self)}
        values = {k: v for k, v in asdict(self).items() if v != defaults[k]}
        for name in ("edges", "event_features"):
            if name in values:
                values[name] = list(values[name])
        if self.event_scales:
            values["event_scales"] = [list(scale) for scale in self.event_scales]
        return values


def column_from_dict(values: Mapping[str, Any]) -> Column:
    """Build a column; an unknown key is refused with the near one suggested.

    Raises:
        ValueError: an unknown key, or a value out of its range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a column must be an object with a name and a kind, got {values!r:.80}")
    known = [f.name for f in fields(Column)]
    for key in values:
        if key not in known:
            raise ValueError(
                f"column {values.get('name')!r:.80} has an unknown key {key!r:.80}"
                f"{near(key, known)}; it may have: {', '.join(known)}"
            )
    if "name" not in values or "kind" not in values:
        raise ValueError(f"a column needs a name and a kind, got {dict(values)!r:.200}")
    return Column(**values)


def check_columns(columns: Sequence[Column], place: str) -> None:
    """Check the columns of one tower against each other.

    Args:
        columns: in the order of the tokens.
        place: which tower, for errors.

    Raises:
        ValueError: one name or a history occurs twice, or a record would take too much room.
    """
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"the {place} tower has {len(columns)} columns, of {MOST_COLUMNS} at most")
    name, times = next(iter(Counter(column.name for column in columns).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f"{place} column {name!r} occurs twice; remove one of them")
    histories = [column.name for column in columns if column.kind == HISTORY]
    if len(histories) > 1:
        raise ValueError(
            f"the {place} tower has the histories {', '.join(histories)}; keep one of them"
        )
    n_slots = sum(column.width for column in columns)
    if n_slots > MOST_SLOTS:
        widest = max(columns, key=lambda column: column.width)
        raise ValueError(
            f"the {place} columns have {n_slots} slots together, {MOST_SLOTS} at most; the widest "
            f"is {widest.name!r} with {widest.width}: shorten it with max_length or leave it out"
        )


def columns_of_tensor(columns: Iterable[Column], tensor: str) -> list[Column]:
    """Return the columns whose slots lie in the named tensor, in order."""
    return [column for column in columns if TENSOR_OF_KIND.get(column.kind) == tensor]


def _is_scale(mean: object, deviation: object) -> bool:
    return (
        isinstance(mean, int | float)
        and isinstance(deviation, int | float)
        and abs(mean) <= LARGEST_SCALE
        and SMALLEST_SCALE <= deviation <= LARGEST_SCALE
    )


def history_of(columns: Iterable[Column]) -> Column | None:
    """Return the column of kind `history`, if there is one."""
    return next((column for column in columns if column.kind == HISTORY), None)


def near(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty text."""
    matches = get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
