"""Joins the table of interactions to the other two: every key becomes a dense row id."""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.column_types import key_texts, numbers, seconds
from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import InteractionSchema
from ftmamba.data.suggestion import suggestion
from ftmamba.data.table_checks import check_columns, check_not_empty, first_missing
from modeling_ftmamba.columns import EVENT_FEATURES, LARGEST_CONTEXT

logger = logging.getLogger(__name__)


def join_interactions(
    table: pa.Table,
    schema: InteractionSchema,
    *,
    user_keys: pa.ChunkedArray,
    item_keys: pa.ChunkedArray,
    drop_unknown: bool,
    context: Sequence[str] = (),
) -> Interactions:
    """Return the interactions as row ids of the two tables of keys.

    Args:
        table: the raw interactions.
        schema: which columns hold what.
        user_keys: of the table of users, as texts.
        item_keys: of the table of items, as texts.
        drop_unknown: leave out interactions whose user or item is in no table.
        context: further columns to keep, of numbers.

    Raises:
        ValueError: a column is missing, or a user or item is in no table (unless dropped), or a
            value of the context is no finite number.
    """
    wanted = [c for c in (schema.user, schema.item, schema.time, schema.weight) if c]
    check_columns(table, wanted, "interactions")
    _check_context(table, context)
    user_ids = _row_ids(table.column(schema.user), user_keys)
    item_ids = _row_ids(table.column(schema.item), item_keys)
    known = (user_ids >= 0) & (item_ids >= 0)
    if not known.all():
        if not drop_unknown:
            raise ValueError(_unknown(table, schema, user_ids=user_ids, item_ids=item_ids))
        logger.warning(
            "dropped %d of %d interactions whose user or item is in no table",
            len(known) - int(known.sum()),
            len(known),
        )
        table = table.filter(pa.array(known))
        user_ids, item_ids = user_ids[known], item_ids[known]
        check_not_empty(table, "interactions", "no row is left: every user or item is unknown")
    return Interactions(
        user_ids,
        item_ids,
        seconds(table.column(schema.time), schema) if schema.time else None,
        _weights(table.column(schema.weight), schema.weight) if schema.weight else None,
        len(user_keys),
        len(item_keys),
        {name: _context(table.column(name), name) for name in context},
    )


def _row_ids(keys: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the row of each key, -1 where it is missing or unknown."""
    rows = pc.index_in(key_texts(keys).cast(known.type), value_set=known)
    return pc.fill_null(rows, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _weights(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    values = numbers(column, name, "interactions")
    if values.null_count:
        raise ValueError(
            f"table 'interactions', column {name!r}: {values.null_count} rows have no weight, the "
            f"first is row {first_missing(values)}; fill them in, or leave 'weight' out of the "
            "schema"
        )
    return values.to_numpy().astype(np.float32)  # type: ignore[no-any-return]


def _check_context(table: pa.Table, context: Sequence[str]) -> None:
    for name in context:
        if name not in table.column_names:
            known = [*EVENT_FEATURES, *table.column_names]
            raise ValueError(
                f"event_features of the users' history name {name!r}, which is no column of table "
                f"'interactions'{suggestion(name, known, 'there are')}"
            )


def _context(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    remedy = "remove it from event_features of the users' history"
    values = numbers(column, name, "interactions", otherwise=remedy).to_numpy()
    large = np.abs(values) > LARGEST_CONTEXT
    if large.any():
        row = int(np.argmax(large))
        raise ValueError(
            f"table 'interactions', column {name!r}: row {row + 1} is {values[row]:g}; beside an "
            f"event a number must be within {LARGEST_CONTEXT:g} of 0, leave it empty if it is not "
            f"known, or {remedy}"
        )
    return values.astype(np.float32)  # type: ignore[no-any-return]


def keep_positives(interactions: Interactions, threshold: float) -> Interactions:
    """Return the interactions whose weight is at least the threshold."""
    if interactions.weights is None:
        raise ValueError(
            "positive_threshold needs a weight, and the schema of 'interactions' names none; "
            "name its column as 'weight', or leave positive_threshold out"
        )
    keep = interactions.weights >= threshold
    if not keep.any():
        raise ValueError(
            f"positive_threshold {threshold} leaves no interaction: the largest weight is "
            f"{interactions.weights.max()}"
        )
    return interactions.select(keep)


def _unknown(
    table: pa.Table,
    schema: InteractionSchema,
    *,
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
) -> str:
    parts = []
    for column, ids, place in (
        (schema.user, user_ids, "users"),
        (schema.item, item_ids, "items"),
    ):
        rows = np.flatnonzero(ids < 0)
        if len(rows):
            first = table.column(column).take(pa.array(rows[:3])).to_pylist()
            shown = ", ".join(
                f"{value!r} (row {row + 1})" for value, row in zip(first, rows[:3], strict=True)
            )
            parts.append(f"{len(rows)} rows whose {column!r} is not in table {place!r}: {shown}")
    return (
        f"table 'interactions' has {' and '.join(parts)}; add them to the tables, or set "
        "drop_unknown to leave these rows out"
    )
