"""Accelerate's state is of the process: a run in it must not reach the next test."""

import numpy as np
import pyarrow as pa
import pytest

from tests.made_up_tables import checkerboard
from tests.pushing.conftest import here
from tests.training.conftest import forget_accelerate

__all__ = ["here"]


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerate():
    yield
    forget_accelerate()


@pytest.fixture(scope="module")
def raw():
    tables = checkerboard(16)
    pairs = tables.interactions
    columns = {
        "user_id": np.array(tables.user_keys)[pairs.user_ids],
        "item_id": np.array(tables.item_keys)[pairs.item_ids],
        "time": pairs.times,
    }
    return {
        "interactions": pa.table(columns),
        "items": tables.items,
        "users": tables.users,
    }
