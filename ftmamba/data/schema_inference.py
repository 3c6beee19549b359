"""Guesses a schema from the three tables, to be shown and corrected.

A guess goes by values first and by names where values leave it open. Names are read as words, so
that `Product name`, `product_name` and `productName` are the same.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.readers import (
    Source,
    decoded,
    holds_times,
    is_in_order,
    is_text,
    key_texts,
    numbers,
    parse_moments,
    read_table,
)
from ftmamba.data.schema import (
    ROW_ORDER,
    TIME_UNITS,
    InteractionSchema,
    Schema,
    TableSchema,
    popularity_column,
)
from modeling_ftmamba.configuration_ftmamba import HISTORY, Column
from modeling_ftmamba.encoders import MISSING_NUMBERS

POPULARITY_DAYS = (1, 7, 30, 1000)
"""Windows proposed for the items where the interactions have times."""

HISTORY_LENGTHS = (50, 100, 200)
"""Lengths proposed for a history: the first that holds all interactions of half of the users."""

LARGEST_VOCABULARY = 100_000
"""Values of a category that get a row of their own in the model's table of embeddings."""
HASH_BUCKETS = 20_000
"""Rows that the values beyond these share."""

SURE_SEPARATORS = ("|", ";")
SEPARATORS = (*SURE_SEPARATORS, ",", " ")
TITLE_NAMES = (
    *("title", "name", "product name", "prod name", "movie title", "track name", "item name"),
    *("product title", "book title", "song", "headline", "label"),
)
TIME_NAMES = (
    *("timestamp", "time", "date", "datetime", "created at", "t dat", "ts", "unix review time"),
)
RATING_WORDS = ("rating", "ratings", "stars", "score", "overall", "grade", "rate", "note", "vote")
"""Words of a column that says how much a user liked an item."""
WEIGHT_NAMES = ("weight", "count", "plays", "play count", "quantity", "qty", "n", "listens")
ORDER_NAMES = ("pos", "position", "order", "rank", "seq", "sequence", "index", "step", "turn", "nr")
CODE_WORDS = {
    "id", "ids", "no", "nr", "code", "codes", "zip", "zipcode", "postcode", "postal", "plz",
    "class", "category", "type", "group", "section", "segment", "cluster", "region", "department",
    "sku", "isbn", "ean", "key", "status", "kind", "brand", "country", "city", "store"
}  # fmt: skip
"""Words of whole numbers that name something."""
MEASURE_WORDS = {
    "age", "year", "years", "month", "months", "day", "days", "hour", "hours", "minute",
    "minutes", "sec", "second", "seconds", "ms", "duration", "length", "width", "height", "depth",
    "weight", "size", "area", "volume", "distance", "price", "cost", "amount", "salary", "income",
    "spend", "revenue", "balance", "budget", "count", "counts", "number", "num", "n", "total",
    "quantity", "qty", "score", "rating", "stars", "votes", "popularity", "followers", "pages",
    "plays", "views", "likes", "edits", "lat", "latitude", "lon", "lng", "longitude", "percent",
    "ratio", "rate", "share", "temperature", "speed", "km", "kg", "cm", "usd", "eur"
}  # fmt: skip
"""Words of whole numbers that measure something."""

_SCANNED_ROWS = 100_000
_FEW_NUMBERS = 20
"""Whole numbers with so few distinct values are codes."""
_MANY_NUMBERS = 1000
"""From so many rows on, whole numbers without a telling name are codes if they are not smooth."""
_SMOOTH = 0.3
"""Correlation of the counts of neighbouring numbers, above which they measure something."""
_MOSTLY = 0.9
_OFTEN_REPEATED = 0.5
"""A text column is categorical if distinct values are at most this share of the rows."""
_LEAST_SEPARATED = 0.1
"""A separator occurs in at least this share of the rows."""
_LONGEST_TITLE = 80
_EARLIEST_EPOCH, _LATEST_EPOCH = 10**8, 10**10
"""1973 to 2286, in seconds."""


def infer_schema(
    users: Source, items: Source, interactions: Source
) -> tuple[Schema, tuple[str, ...]]:
    """Guess keys by name and uniqueness, and kinds by type, values and names.

    The users' history is always among their columns, and the items' key among theirs.

    Returns:
        The schema, and notes on what was left out of it, why, and what would bring it in.

    Raises:
        ValueError: no column can be the key of a table, or a table is empty.
    """
    users, items, interactions = (read_table(source) for source in (users, items, interactions))
    for table, name in ((users, "users"), (items, "items"), (interactions, "interactions")):
        if not table.num_rows:
            raise ValueError(f"table {name!r} is empty: a schema cannot be inferred from no rows")
    notes: list[str] = []
    free = list(interactions.column_names)
    user_key, user_column = find_key(users, interactions, ("users", "interactions"), free)
    free.remove(user_column)
    item_key, item_column = find_key(items, interactions, ("items", "interactions"), free)
    free.remove(item_column)
    user_texts = key_texts(interactions.column(user_column))
    event_columns = _event_columns(interactions, free, user_texts, notes)
    events = InteractionSchema(user_column, item_column, **event_columns)
    left = [name for name in free if name not in (events.time, events.weight, events.order)]
    notes += [
        f"interactions.{_short(name)} is left out: not a gap or weight; to read a number beside "
        "events, add it to event_features of the history"
        for name in left
    ]
    counts = pc.value_counts(user_texts).field("counts").to_numpy()
    half = np.median(counts)
    features = ("gap",) * bool(events.time) + ("weight",) * bool(events.weight)
    history = Column(
        _free_name(HISTORY, users.column_names),
        HISTORY,
        max_length=next((n for n in HISTORY_LENGTHS if n >= half), HISTORY_LENGTHS[-1]),
        event_features=features,
    )
    title = _title(items, item_key)
    user_columns = [*_columns(users, "users", skip=(user_key,), notes=notes), history]
    item_columns = [
        _category(item_key, items.num_rows),
        *_columns(items, "items", skip=(item_key, title), notes=notes),
    ]
    if events.time:
        item_columns += [popularity_column(days) for days in POPULARITY_DAYS]
    schema = Schema(
        TableSchema(user_key, tuple(user_columns)),
        TableSchema(item_key, tuple(item_columns), title),
        events,
    )
    return schema, tuple(notes)


def is_rating(name: str) -> bool:
    """Say whether the name of a weight says how much a user liked an item."""
    return bool(set(_words(name)) & set(RATING_WORDS))


def _event_columns(
    interactions: pa.Table, free: list[str], users: pa.ChunkedArray, notes: list[str]
) -> dict[str, str]:
    """Return the columns of time, weight and order, and the unit of a numeric time."""
    times = [name for name in free if _is_temporal(interactions.column(name))]
    times += [
        name
        for name in free
        if not set(_words(name)) & CODE_WORDS and holds_times(decoded(interactions.column(name)))
    ]
    time, unit = _named(TIME_NAMES, free) or next(iter(times), ""), "s"
    if time and pc.count_distinct(interactions.column(time)).as_py() == 1 < interactions.num_rows:
        notes.append(f"interactions.{time} is no time of the schema: all rows have the same one")
        free, time = [name for name in free if name != time], ""
    floats = _as_numbers(interactions.column(time).slice(0, _SCANNED_ROWS)) if time else None
    largest = None if floats is None else pc.max(floats).as_py()
    if largest is not None:
        # The first in which a numeric time falls between 1973 and 2286.
        fits = (u for u, n in TIME_UNITS.items() if _EARLIEST_EPOCH <= largest / n < _LATEST_EPOCH)
        unit = next(fits, "s")
    free = [name for name in free if name != time]
    unrated = [name for name in free if not is_rating(name)]
    order = next((n for n in unrated if _is_order(n, interactions.column(n), users)), "")
    order = order or (ROW_ORDER if is_in_order(interactions) else "")
    numeric = [
        name
        for name in free
        if name != order and interactions.column(name).null_count == 0
        if _as_numbers(interactions.column(name).slice(0, _SCANNED_ROWS)) is not None
    ]
    ratings = [name for name in numeric if is_rating(name)]
    weight = _named(RATING_WORDS, ratings) or next(iter(ratings), "")
    weight = weight or _named(WEIGHT_NAMES, numeric)
    if not time and not order:
        notes.append(
            "the interactions have no time and no column of positions, so a history is a set; if "
            "the file is in order, write order: row among the interactions"
        )
    return {"time": time, "weight": weight, "time_unit": unit, "order": order}


def _is_order(name: str, values: pa.ChunkedArray, users: pa.ChunkedArray) -> bool:
    """Say whether whole numbers from 0 or 1 on count the interactions of every user.

    A name of `ORDER_NAMES` allows gaps, and a few numbers that occur twice.
    """
    floats = _as_numbers(values.slice(0, _SCANNED_ROWS))
    if floats is None or len(floats) < min(len(values), _SCANNED_ROWS):
        return False
    rows = pa.table({"user": users.slice(0, _SCANNED_ROWS), "position": floats})
    aggregates = [("position", kind) for kind in ("min", "max", "count", "count_distinct")]
    by_user = rows.group_by("user").aggregate(aggregates)
    least, most, n, n_distinct = (
        by_user.column(f"position_{kind}").to_numpy() for _, kind in aggregates
    )
    is_whole = pc.all(pc.equal(pc.floor(floats), floats)).as_py()
    if not is_whole or np.median(n) < 2:
        return False
    if _named(ORDER_NAMES, [name]):
        return bool(n_distinct.sum() >= _MOSTLY * n.sum())
    counts = (n_distinct == n) & (most - least == n - 1) & (least >= 0) & (least <= 1)
    # The last user of those scanned may be cut off.
    return bool((~counts).sum() <= (len(values) > _SCANNED_ROWS))


def _title(items: pa.Table, key: str) -> str:
    """Return the column of a usual name, else the first of short texts of which few are alike."""
    free = [name for name in items.column_names if name != key]
    if named := _named(TITLE_NAMES, free):
        return named
    for name in free:
        values = decoded(items.column(name).slice(0, _SCANNED_ROWS)).drop_null()
        if not is_text(values.type) or len(values) < _MOSTLY * min(items.num_rows, _SCANNED_ROWS):
            continue
        # Two letters side by side, no address and no long code.
        is_name = pc.and_(
            pc.match_substring_regex(values, r"[^\W\d_]{2}"),
            pc.invert(pc.match_substring_regex(values, r"://|^\S{20,}$")),
        )
        if (
            pc.count_distinct(values).as_py() >= _MOSTLY * len(values)
            and pc.mean(pc.utf8_length(values)).as_py() <= _LONGEST_TITLE
            and pc.mean(is_name.cast(pa.float64())).as_py() >= _MOSTLY
            and parse_moments(values) is None
        ):
            return str(name)
    return ""


def find_key(
    table: pa.Table, other: pa.Table, names: tuple[str, str], free: Sequence[str]
) -> tuple[str, str]:
    """Return the key's column in a table and in another one, there one of the free ones.

    A key is unique in its table. The other has it under the same name, else in a column most of
    whose values are keys of the table; of several, under the most alike name.

    Raises:
        ValueError: there is none; `names` are those of the two tables.
    """
    name, other_name = names
    unique = [column for column in table.column_names if _is_unique(table.column(column))]
    if not unique:
        raise ValueError(
            f"table {name!r} has no column with a value of its own in every row, so no key; "
            f"it has: {', '.join(table.column_names)}"
        )
    for column in unique:
        if column in free:
            return column, column
    share, _, here, there = max(
        (
            (
                round(_overlap(other.column(there), table.column(here)), 2),
                SequenceMatcher(None, _squeezed(f"{name} {here}"), _squeezed(there)).ratio(),
                here,
                there,
            )
            for here in unique
            for there in free
        ),
        key=lambda candidate: candidate[:2],
        default=(0.0, 0.0, "", ""),
    )
    if share < _OFTEN_REPEATED:
        raise ValueError(
            f"table {other_name!r} has no column that holds keys of table {name!r} (tried "
            f"{', '.join(unique)}); it has: {', '.join(other.column_names)}; give the two "
            "the same name"
        )
    return here, there


def _is_unique(values: pa.ChunkedArray) -> bool:
    values = decoded(values)
    if pa.types.is_nested(values.type) or pa.types.is_floating(values.type) or values.null_count:
        return False
    return pc.count_distinct(values).as_py() == len(values)  # type: ignore[no-any-return]


def _overlap(values: pa.ChunkedArray, keys: pa.ChunkedArray) -> float:
    head = decoded(values.slice(0, _SCANNED_ROWS))
    if pa.types.is_nested(head.type):
        return 0.0
    found = pc.is_in(key_texts(head), value_set=key_texts(keys))
    return float(pc.mean(found.cast(pa.float64())).as_py())


def _words(name: str) -> list[str]:
    """Return the words of a name, in small letters: `releaseYear (AD)` is release, year, ad."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", apart.lower())


def _squeezed(name: str) -> str:
    return "".join(_words(name))


def _named(usual: Iterable[str], names: Iterable[str]) -> str:
    """Return the first of the names that is a usual one, or an empty text."""
    by_name = {_squeezed(name): name for name in names}
    found = (by_name[_squeezed(one)] for one in usual if _squeezed(one) in by_name)
    return next(found, "")


def _free_name(name: str, taken: Iterable[str]) -> str:
    return name if name not in taken else _free_name(f"{name}_", taken)


def _category(name: str, n_values: int) -> Column:
    if n_values <= LARGEST_VOCABULARY:
        return Column(name, "categorical")
    return Column(name, "categorical", max_vocabulary=LARGEST_VOCABULARY, hash_buckets=HASH_BUCKETS)


def _columns(table: pa.Table, name: str, *, skip: Iterable[str], notes: list[str]) -> list[Column]:
    columns: list[Column] = []
    for column in table.column_names:
        if column in skip:
            continue
        values = decoded(table.column(column).slice(0, _SCANNED_ROWS))
        kind = _kind(column, values)
        if isinstance(kind, str):
            notes.append(f"{name}.{_short(column)} is left out: {kind}")
            continue
        columns.append(kind)
        if kind.kind != "categorical":
            continue
        if (twin := _twin(table, kind, columns[:-1])) is not None:
            # A name says more to people than its code.
            is_name = _as_numbers(values.drop_null()) is None
            left, kept = (twin, kind) if is_name else (kind, twin)
            columns.remove(left)
            notes.append(
                f"{name}.{_short(left.name)} is left out: it says the same as {_short(kept.name)}; "
                "declare it to read both"
            )
        elif not set(_words(column)) & CODE_WORDS and _almost_numbers(values):
            notes.append(
                f"{name}.{_short(column)} is read as a category, for some values are no numbers; "
                "empty or correct these to read it as a number"
            )
    return columns


def _twin(table: pa.Table, column: Column, others: Iterable[Column]) -> Column | None:
    """Return the category that tells the same rows apart, such as a code of a name."""
    one = _codes(table, column.name)
    for other in others:
        if other.kind == "categorical":
            two = _codes(table, other.name)
            n_pairs = len(np.unique(one * (two.max() + 1) + two))
            if n_pairs == len(np.unique(one)) == len(np.unique(two)):
                return other
    return None


def _codes(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Return the number of each row's value, 0 where it is missing."""
    values = key_texts(table.column(name).slice(0, _SCANNED_ROWS))
    codes = values.combine_chunks().dictionary_encode().indices
    return pc.fill_null(pc.add(codes.cast(pa.int64()), 1), 0).to_numpy()  # type: ignore[no-any-return]


def _short(name: str, most: int = 40) -> str:
    """Return a name that keeps a note on one line."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _kind(name: str, values: pa.ChunkedArray) -> Column | str:
    """Return the column, or the reason why it is left out and the remedy."""
    n_rows, values = len(values), values.drop_null()
    kind = values.type
    if not len(values):
        return "it has no value"
    if not pa.types.is_nested(kind) and pc.count_distinct(values).as_py() == 1 < n_rows:
        same = "all rows have the same value"
        return same if len(values) == n_rows else Column(name, "categorical")
    if pa.types.is_temporal(kind):
        return Column(name, "timestamp")
    if pa.types.is_boolean(kind):
        return Column(name, "categorical")
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return f"its type {_short(str(kind))} is not known; make columns of its fields"
    if pa.types.is_nested(kind):
        if not pa.types.is_floating(kind.value_type):
            return Column(name, "categories")
        lengths = pc.count_distinct(pc.list_value_length(values)).as_py()
        differ = "its lists of numbers differ in length; give all of them the same to read them"
        return Column(name, "vector") if lengths == 1 else differ
    if is_text(kind):
        return _kind_of_texts(name, values)
    floats = _as_numbers(values)
    if floats is None:
        return f"its type {_short(str(kind))} is not known; convert it to numbers or texts"
    return _kind_of_numbers(name, floats)


def _kind_of_numbers(name: str, floats: pa.ChunkedArray) -> Column | str:
    low, high = pc.min(floats).as_py(), pc.max(floats).as_py()
    whole = pc.all(pc.equal(pc.floor(floats), floats)).as_py()
    n_distinct = pc.count_distinct(floats).as_py()
    is_epoch = whole and _EARLIEST_EPOCH <= low <= high < _LATEST_EPOCH
    if is_epoch and n_distinct > _FEW_NUMBERS and not set(_words(name)) & CODE_WORDS:
        return Column(name, "timestamp")
    if not whole or not _is_code(name, floats, n_distinct):
        return Column(name, "numeric")
    if n_distinct >= _MOSTLY * len(floats):
        return _OWN_VALUE
    return _category(name, n_distinct)


def _is_code(name: str, floats: pa.ChunkedArray, n_distinct: int) -> bool:
    """Say whether whole numbers name something rather than measure it."""
    words = set(_words(name))
    if n_distinct <= _FEW_NUMBERS and n_distinct * 10 <= len(floats):
        return True
    if words & CODE_WORDS or words & MEASURE_WORDS:
        return bool(words & CODE_WORDS)
    if len(floats) < _MANY_NUMBERS:
        return False
    return _smoothness(floats.to_numpy()) < _SMOOTH


def _smoothness(values_R: NDArray[np.float64]) -> float:
    """Return how alike the counts of neighbouring numbers are, a correlation.

    The counts of what is measured rise and fall slowly from number to number; codes that follow one
    another need not have anything in common.
    """
    low, high = np.quantile(values_R, [0.01, 0.99])
    counts = np.bincount((values_R[(values_R >= low) & (values_R <= high)] - low).astype(np.int64))
    if len(counts) > 10 * len(values_R):
        return 0.0
    logs = np.log1p(counts)
    if len(logs) < 3 or logs[1:].std() == 0 or logs[:-1].std() == 0:
        return 1.0
    return float(np.corrcoef(logs[1:], logs[:-1])[0, 1])


_OWN_VALUE = "nearly every row has its own value; declare it as categorical to read it anyway"


def _kind_of_texts(name: str, values: pa.ChunkedArray) -> Column | str:
    if parse_moments(values) is not None:
        return Column(name, "timestamp")
    has_leading_zero = pc.any(pc.match_substring_regex(values, r"^0\d")).as_py()
    floats = None if has_leading_zero else _as_numbers(values)
    if floats is not None:
        return _kind_of_numbers(name, floats)
    separator = _separator(values)
    if separator:
        return Column(name, "categories", separator=separator)
    n_distinct = pc.count_distinct(values).as_py()
    share = n_distinct / len(values)
    if share <= _OFTEN_REPEATED or (len(values) <= _FEW_NUMBERS and share < 1):
        return _category(name, n_distinct)
    n_blanks = pc.mean(pc.count_substring(values, " ")).as_py()
    free = "it is free text; declare it as categories, separator ' ', or add its embedding"
    return free if n_blanks >= 1 else _OWN_VALUE


def _separator(values: pa.ChunkedArray) -> str:
    """Return what splits the texts into members that many of them share, or nothing.

    A separator must occur in a tenth of the rows and leave fewer distinct members than there are
    distinct texts. Commas and blanks occur in plain texts too: there the members must be half as
    many, and each occur in ten rows on average.
    """
    n_texts = pc.count_distinct(values).as_py()
    for separator in SEPARATORS:
        holds = pc.mean(pc.match_substring(values, separator).cast(pa.float64())).as_py()
        if holds < _LEAST_SEPARATED:
            continue
        members = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(values, separator)))
        n_members = pc.count_distinct(members).as_py()
        is_sure = n_members * 2 <= n_texts and n_members * 10 <= len(values)
        if is_sure or (separator in SURE_SEPARATORS and n_members < n_texts):
            return separator
    return ""


def _as_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return numbers without the missing ones, or None where a value is no number."""
    if is_text(values.type):
        missing = pc.is_in(pc.utf8_lower(values), value_set=pa.array(MISSING_NUMBERS, values.type))
        if pc.all(missing).as_py():
            return None
    try:
        return numbers(values, "", "").drop_null()
    except ValueError:
        return None


def _almost_numbers(values: pa.ChunkedArray) -> bool:
    """Say whether texts are numbers but for a few."""
    if not is_text(values.type) or _as_numbers(values.drop_null()) is not None:
        return False
    like_number = pc.match_substring_regex(values, r"^\s*[-+]?[1-9]\d*[.,]?\d*\s*$")
    return bool(pc.mean(like_number.cast(pa.float64())).as_py() >= _MOSTLY)


def _is_temporal(values: pa.ChunkedArray) -> bool:
    values = decoded(values.slice(0, _SCANNED_ROWS)).drop_null()
    is_iso = is_text(values.type) and len(values) and parse_moments(values) is not None
    return bool(pa.types.is_temporal(values.type) or is_iso)
