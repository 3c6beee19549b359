"""Fitting a feature extractor on training rows: vocabularies, scales and bins of its columns.

A checkpoint only encodes, so this does not travel with it.

Shapes: R rows, V distinct values, F members of all rows' sets, M slots of one set.
"""

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_ftmamba.configuration_ftmamba import (
    HISTORY,
    MISSING_ID,
    N_SPECIAL_IDS,
    TIMESTAMP_DIMENSION,
    TOWERS,
    Column,
    near,
)
from modeling_ftmamba.encoders import (
    CategoryEncoder,
    ColumnEncoder,
    NumericEncoder,
    TimestampEncoder,
    VectorEncoder,
    column_members,
    column_numbers,
    column_seconds,
    column_vectors,
    text_table,
)
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor, name_of, raw_columns

N_BINS = 48
_MOST_QUANTILES = 1000


def fit_extractor(
    extractor: FTMambaFeatureExtractor, users: Any, items: Any
) -> FTMambaFeatureExtractor:
    """Return the extractor fitted on training rows; the one that is given stays as it is.

    Args:
        extractor: declares the columns.
        users: in any form that the extractor encodes; the columns of a dict may differ in length.
        items: likewise, with raw values in the columns of popularity (`Column`).

    Example:
        >>> extractor = FTMambaFeatureExtractor(
        ...     user_columns=[{"name": "age", "kind": "numeric"}],
        ...     item_columns=[{"name": "genre", "kind": "categorical"}],
        ... )
        >>> genres = {"genre": ["drama", "war", "drama"]}
        >>> extractor = fit_extractor(extractor, {"age": [20, 40]}, genres)
        >>> extractor(users={"age": 30}, items=[{"genre": "war"}, {}])["item_category_ids"]
        tensor([[4],
                [1]])
    """
    arrays: dict[str, NDArray[Any]] = {}
    fitted: dict[str, list[dict[str, Any]]] = {}
    for tower, source in zip(TOWERS, (users, items), strict=True):
        declared = extractor.columns(tower)
        has_raw = any(column.kind != HISTORY for column in declared)
        values, _, keys = raw_columns(source, declared, tower) if has_raw else ({}, 0, [])
        fitted[tower] = [column.to_dict() for column in declared]
        for index, column in enumerate(declared):
            if column.kind == HISTORY:
                continue
            name, own = name_of(column, tower), values.get(column.name)
            if own is None or len(own) == 0:
                hint = near(column.name, keys) or f"; these have: {', '.join(keys)}"
                hint = "; give the raw popularity" if column.popularity_days else hint
                raise ValueError(f"{name} has no value in the training rows{hint}")
            encoder = fit_encoder(column, name, own)
            fitted[tower][index] = encoder.column.to_dict()
            for part, array in encoder.arrays.items():
                arrays[f"{tower}/{column.name}/{part}"] = array
    keys_of = {"user_key": extractor.user_key, "item_key": extractor.item_key}
    return type(extractor)(fitted["user"], fitted["item"], **keys_of, arrays=arrays)


def fit_encoder(column: Column, name: str, values: Any) -> ColumnEncoder:
    """Fit the encoder of one column; the name is for errors and warnings."""
    return _FITS[column.kind](column, name, values)


def _fit_numeric(column: Column, name: str, values: Any) -> NumericEncoder:
    numbers_R = column_numbers(values, name)
    known = numbers_R[~np.isnan(numbers_R)]
    is_constant = len(known) == 0 or known.min() == known.max()
    if column.scaling == "none":
        table = np.array([0.0, 1.0])
    elif is_constant:
        table = np.array([known[0] if len(known) else 0.0, 0.0])
    elif column.scaling == "quantile":
        table = _normal_scores(known)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            mean, spread = known.mean(), known.std()
        if not (np.isfinite(mean) and np.isfinite(spread) and spread > 0):
            raise ValueError(
                f"{name} cannot be standardised, its values lie between {known.min():g} and "
                f"{known.max():g}; give the column scaling 'quantile'"
            )
        table = np.array([mean, 1 / spread])
    encoder = NumericEncoder(replace(column, edges=()), name, {"table": table})
    if is_constant:
        what = f"is constant ({known[0]:g})" if len(known) else "has no value at all"
        _warn(name, what, "it is kept" if column.scaling == "none" else "every value becomes 0")
        return encoder
    # Quantiles of the scaled values as the model sees them; those almost alike share a bin.
    scaled = encoder.scaled(known).astype(np.float32).astype(np.float64)
    quantiles = np.unique(np.quantile(scaled, np.linspace(0, 1, N_BINS + 1))).tolist()
    edges = quantiles[:1]
    for edge in quantiles[1:]:
        if edge - edges[-1] > 1e-4 * (quantiles[-1] - quantiles[0]):
            edges.append(edge)
    return NumericEncoder(replace(column, edges=tuple(edges)), name, encoder.arrays)


def _normal_scores(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, T): some of the values, and the normal score of the middle of each one's ranks."""
    distinct_V, counts_V = np.unique(known, return_counts=True)
    kept = np.arange(len(distinct_V))
    if len(distinct_V) > _MOST_QUANTILES:
        kept = np.linspace(0, len(known) - 1, _MOST_QUANTILES).round().astype(np.int64)
        kept = np.unique(np.searchsorted(np.cumsum(counts_V), np.unique(kept), side="right"))
    ranks_V = (np.cumsum(counts_V) - counts_V / 2) / len(known)
    scores = torch.special.ndtri(torch.from_numpy(ranks_V[kept])).numpy()
    return np.stack([distinct_V[kept], scores])


def _fit_categories(column: Column, name: str, values: Any) -> CategoryEncoder:
    """Fit a `categorical` column or a set, which is one of several members."""
    members = column_members(values, column, name)
    codes_R, lengths_V, codes_F, texts = members
    counts_V = np.bincount(codes_R % len(lengths_V), minlength=len(lengths_V))
    counts_F = np.repeat(counts_V, np.maximum(lengths_V, 0))
    counts = np.bincount(codes_F % len(texts), counts_F, len(texts)).astype(np.int64)
    count_of: Counter[str] = Counter()
    for text, count in zip(texts, counts.tolist(), strict=True):
        if text and count:
            count_of[text] += count
    known = [text for text, count in count_of.items() if count >= column.min_count]
    known.sort(key=lambda text: (-count_of[text], text))
    table = text_table(known[: column.max_vocabulary or None])
    size = N_SPECIAL_IDS + len(table) + column.hash_buckets
    column = replace(column, vocabulary_size=size)
    if column.kind == "categories" and not column.max_length:
        column = replace(column, max_length=max(1, int(lengths_V.max(initial=1))))
    encoder = CategoryEncoder(column, name, {"bytes": table.packed, "offsets": table.offsets})
    ids_RM = encoder.ids(members)
    if (ids_RM == ids_RM[0]).all():
        is_missing = ids_RM[0, 0] == MISSING_ID
        _warn(name, "has no value at all" if is_missing else "is always the same", "it is kept")
    return encoder


def _fit_timestamp(column: Column, name: str, values: Any) -> TimestampEncoder:
    seconds_R = column_seconds(values, name)
    known = seconds_R[~np.isnan(seconds_R)]
    if len(known) == 0 or known.min() == known.max():
        what = "is always the same" if len(known) else "has no value at all"
        _warn(name, what, "its time becomes 0")
        line = np.array([known[0] if len(known) else 0.0, 0.0])
    else:
        line = np.array([known.mean(), 1 / known.std()])
    column = replace(column, dimension=TIMESTAMP_DIMENSION)
    return TimestampEncoder(column, name, {"mean_and_slope": line})


def _fit_vector(column: Column, name: str, values: Any) -> VectorEncoder:
    lengths_R = column_vectors(values, name)[1]
    dimension = column.dimension or max(1, int(lengths_R[np.argmax(lengths_R >= 0)]))
    if not (lengths_R >= 0).any():
        _warn(name, "has no value at all", "it is kept")
    encoder = VectorEncoder(replace(column, dimension=dimension), name, {})
    encoder.encode(values)  # which names the first vector of another width
    return encoder


def _warn(name: str, what: str, consequence: str) -> None:
    warnings.warn(f"{name} {what} in the training rows; {consequence}", stacklevel=4)


_FITS = {
    "numeric": _fit_numeric,
    "categorical": _fit_categories,
    "categories": _fit_categories,
    "timestamp": _fit_timestamp,
    "vector": _fit_vector,
}
