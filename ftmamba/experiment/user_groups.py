"""Who is served well and who badly: the test users by the values of a column.

Shapes: U test users.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftmamba.data.tables import Tables
from ftmamba.evaluation import Evaluation
from modeling_ftmamba.configuration_ftmamba import Column, near

LEAST_USERS = 5
"""Smaller groups are put together: their figures say nothing, and could point at a person."""

MOST_GROUPS = 12
N_BANDS = 4
N_RESAMPLES = 2_000
OTHERS = "all others"
MISSING = "(missing)"


def group_figures(
    evaluations: Mapping[str, Evaluation],
    tables: Tables,
    *,
    columns: Sequence[str],
    metric: str,
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each column, its groups of test users with every model's mean and interval.

    A category is a group; numbers are cut into quarters of the test users; of a set, each member
    is a group, so that a user may be in several.

    Raises:
        ValueError: the table of users has no such column, or one that makes no groups.
    """
    own = next(iter(evaluations.values()))
    return {
        name: [
            {
                "group": group,
                "n_users": int(is_in_U.sum()),
                "models": {
                    model: _figure(evaluation.of(is_in_U), metric)
                    for model, evaluation in evaluations.items()
                },
            }
            for group, is_in_U in groups_of_users(tables, name, own.user_ids)
        ]
        for name in columns
    }


def check_group_columns(columns: Sequence[str], tables: Tables) -> None:
    """Raise ValueError for a column that makes no groups, before anything is trained."""
    for name in columns:
        _column(tables, name)


def groups_of_users(
    tables: Tables, name: str, user_ids_U: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return groups as masks (U,): the largest first, bands in order, small ones together last."""
    column = _column(tables, name)
    values = tables.users.column(name).take(pa.array(user_ids_U))
    of_kind = _bands if column.kind == "numeric" else _values
    groups = list(of_kind(values, column))
    if column.kind != "numeric":
        groups.sort(key=lambda group: (-group[1].sum(), group[0]))
    large = [group for group in groups if group[1].sum() >= LEAST_USERS][:MOST_GROUPS]
    rest = ~np.logical_or.reduce([mask for _, mask in large] or [np.zeros(len(user_ids_U), bool)])
    if rest.sum() >= LEAST_USERS:
        large.append((OTHERS, rest))
    return large


def _column(tables: Tables, name: str) -> Column:
    known = {column.name: column for column in tables.schema.users.raw_columns}
    if name not in known:
        raise ValueError(
            f"user_groups: the users have no column {name!r}{near(name, known)}; "
            f"they have: {', '.join(known) or 'none'}"
        )
    if known[name].kind not in ("numeric", "categorical", "categories"):
        raise ValueError(
            f"user_groups: column {name!r} is of kind {known[name].kind!r}, which makes no groups; "
            "name a numeric or categorical column, or one of categories"
        )
    return known[name]


def _values(values: pa.ChunkedArray, column: Column) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield a group for each value, or each member of a set."""
    rows: list[Any] = values.to_pylist()
    sets = [_members(row, column) for row in rows]
    for member in sorted(set().union(*sets)):
        yield member, np.array([member in each for each in sets], bool)


def _members(value: Any, column: Column) -> set[str]:
    if value is None or value == "":
        return {MISSING}
    if column.kind == "categorical":
        return {str(value)}
    parts = value.split(column.separator) if isinstance(value, str) else value
    return {str(part).strip() for part in parts} - {""} or {MISSING}


def _bands(values: pa.ChunkedArray, column: Column) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield a group for each quarter of the numbers; equal numbers stay together.

    The outer bands are open: the least and the greatest number may be one person's.
    """
    del column
    numbers_U = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy()
    known = numbers_U[~np.isnan(numbers_U)]
    if len(known) < len(numbers_U):
        yield MISSING, np.isnan(numbers_U)
    inner = np.linspace(0, 1, N_BANDS + 1)[1:-1]
    ends = np.unique(np.quantile(known, inner, method="higher")) if len(known) else known
    ends = ends[ends < known.max()] if len(known) else ends
    for start, end in pairwise([-np.inf, *ends, np.inf]):
        is_in_U = (numbers_U > start) & (numbers_U <= end)
        if is_in_U.any():
            yield _band_name(numbers_U[is_in_U], start, end), is_in_U


def _band_name(numbers: NDArray[np.float64], start: float, end: float) -> str:
    if np.isinf(start):
        return "any number" if np.isinf(end) else f"up to {end:g}"
    return f"{numbers.min():g} and over" if np.isinf(end) else f"{numbers.min():g} to {end:g}"


def _figure(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    low, high = evaluation.interval(metric, n_resamples=N_RESAMPLES)
    return {"value": evaluation.mean(metric), "interval": [low, high]}
