"""How far the numbers beside events spread in training, which is what the model scales them by.

Shapes: R training interactions.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions
from ftmamba.data.suggestion import suggestion
from modeling_ftmamba.columns import HISTORY, SMALLEST_SCALE, Column

_AS_IT_IS = (0.0, 1.0)


def with_event_scales(columns: Iterable[Column], train: Interactions) -> tuple[Column, ...]:
    """Return a tower's columns, the scales of the history's context fitted.

    A history without columns of the interactions beside its events stays as it is.

    Args:
        columns: of the users.
        train: the training interactions, each of which counts once.

    Raises:
        ValueError: the history names a column that the interactions do not have.
    """
    return tuple(
        replace(column, event_scales=_scales(column, train))
        if column.kind == HISTORY and column.context
        else column
        for column in columns
    )


def _scales(history: Column, train: Interactions) -> tuple[tuple[float, float], ...]:
    for name in history.context:
        if name not in train.context:
            raise ValueError(
                f"event_features of column {history.name!r} name {name!r}, of which the training "
                f"interactions have no numbers{suggestion(name, train.context, 'they have')}; load "
                "them with the schema that names it"
            )
    return tuple(
        _scale(train.context[name]) if name in history.context else _AS_IT_IS
        for name in history.event_features
    )


def _scale(values_R: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation of the numbers that are known; the latter 1 of equals."""
    known = values_R[~np.isnan(values_R)].astype(np.float64)
    if not len(known):
        return _AS_IT_IS
    deviation = float(known.std()) if known.min() < known.max() else 1.0
    return float(known.mean()), deviation if deviation >= SMALLEST_SCALE else 1.0
