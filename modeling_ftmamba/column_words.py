"""Encoded values back in words: what the model has read in a column, for people."""

from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from .category_columns import CategoricalEncoder, SetEncoder
from .column_encoders import ColumnEncoder
from .configuration_ftmamba import MISSING_ID, N_SPECIAL_IDS, PADDING_ID, UNSEEN_ID
from .numeric_columns import NumericEncoder
from .time_columns import TimestampEncoder
from .vocabulary import Vocabulary

MISSING = "missing"
UNSEEN = "never seen in training"
RARE = "rare"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def in_words(encoder: ColumnEncoder, slots: NDArray[np.generic]) -> str:
    """Return the encoded value of one column of one record in words.

    Args:
        encoder: of the column.
        slots: the column's slots of the record.
    """
    if isinstance(encoder, CategoricalEncoder):
        return _text(encoder.vocabulary, int(slots[0]))
    if isinstance(encoder, SetEncoder):
        ids = [int(one) for one in slots if one != PADDING_ID]
        return ", ".join(_text(encoder.vocabulary, one) for one in ids) or "none"
    if np.isnan(slots).any():
        return MISSING
    if isinstance(encoder, NumericEncoder):
        return _number(encoder, float(slots[0]))
    if isinstance(encoder, TimestampEncoder):
        return _time(encoder, float(slots[0]))
    return f"a vector of {len(slots)}"


def _text(vocabulary: Vocabulary, one: int) -> str:
    if one < N_SPECIAL_IDS:
        return {MISSING_ID: MISSING, UNSEEN_ID: UNSEEN}.get(one, "none")
    known = one < vocabulary.first_bucket
    return vocabulary.texts[one - N_SPECIAL_IDS] if known else RARE


def _number(encoder: NumericEncoder, scaled: float) -> str:
    if encoder.table.ndim == 2:
        number = float(np.interp(scaled, encoder.table[1], encoder.table[0]))
    else:
        mean, slope = encoder.table
        number = scaled / slope + mean if slope else mean
    if encoder.column.popularity_days:
        days, n_taken = encoder.column.popularity_days, round(float(np.expm1(number)))
        return f"{n_taken} in {days} day{'' if days == 1 else 's'}"
    return f"{number:.6g}"


def _time(encoder: TimestampEncoder, scaled: float) -> str:
    mean, slope = encoder.mean_and_slope
    seconds = scaled / slope + mean if slope else mean
    return (_EPOCH + timedelta(seconds=float(seconds))).strftime("%Y-%m-%d")
