"""What tables hold, counted once and kept as plain values: for cards and for whoever compares runs.

Shapes: R interactions.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions
from ftmamba.data.readers import is_text
from ftmamba.data.schema import TableSchema
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Split
from modeling_ftmamba.columns import Column

SHARES = (0.05, 0.5, 0.95)
"""Quantiles given of numbers: neither the least nor the greatest, which may be one person's."""


def describe_tables(tables: Tables) -> dict[str, Any]:
    """Return rows, missing shares, cardinalities and quantiles of the three tables."""
    return {
        "users": _describe_table(tables.users, tables.schema.users),
        "items": _describe_table(tables.items, tables.schema.items),
        "interactions": _describe_interactions(tables.interactions),
    }


def describe_split(split: Split) -> dict[str, int]:
    """Return how many interactions each part has."""
    return {name: len(getattr(split, name)) for name in ("train", "validation", "test")}


def describe_column(values: pa.ChunkedArray, column: Column) -> dict[str, Any]:
    """Return the share of rows without a value, the number of different ones, and quantiles.

    Of a set the different members count; of a vector nothing does.
    """
    n_rows = len(values)
    if is_text(values.type):
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    facts: dict[str, Any] = {"missing": values.null_count / n_rows if n_rows else 0.0}
    if column.kind == "vector":
        return facts
    single = _members(values, column.separator) if column.kind == "categories" else values
    facts["distinct"] = pc.count_distinct(single).as_py()
    if column.kind == "numeric" and values.null_count < n_rows:
        facts["quantiles"] = pc.quantile(values, q=list(SHARES)).to_pylist()
    return facts


def _describe_table(table: pa.Table, schema: TableSchema) -> dict[str, Any]:
    columns = {
        column.name: describe_column(table.column(column.name), column)
        for column in schema.raw_columns
    }
    return {"rows": table.num_rows, "columns": columns}


def _members(values: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    if is_text(values.type):
        values = pc.split_pattern(values, separator)
    members = pc.list_flatten(values)
    if not is_text(members.type):
        return members
    members = pc.utf8_trim_whitespace(members)
    return members.filter(pc.not_equal(members, ""))


def _describe_interactions(interactions: Interactions) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": len(interactions),
        "per_user": _quantiles(interactions.user_ids, interactions.n_users),
        "per_item": _quantiles(interactions.item_ids, interactions.n_items),
        "share_of_top_tenth": _share_of_top_tenth(interactions),
    }
    if interactions.times is not None and len(interactions):
        facts["first"] = _day(int(interactions.times.min()))
        facts["last"] = _day(int(interactions.times.max()))
    return facts


def _quantiles(ids_R: NDArray[np.int64], n_rows: int) -> list[float]:
    counts = np.bincount(ids_R, minlength=n_rows)
    return [float(value) for value in np.quantile(counts, SHARES)]


def _share_of_top_tenth(interactions: Interactions) -> float:
    """Return what share of the interactions the most popular tenth of the items has."""
    counts = np.sort(np.bincount(interactions.item_ids, minlength=interactions.n_items))[::-1]
    top = counts[: max(1, -(-len(counts) // 10))]
    return float(top.sum() / max(1, counts.sum()))


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def of_column(facts: Mapping[str, Any], table: str, name: str) -> Mapping[str, Any]:
    """Return what `describe_tables` said of one column, empty where it said nothing."""
    found: Mapping[str, Any] = facts.get(table, {}).get("columns", {}).get(name, {})
    return found
