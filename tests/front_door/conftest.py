"""Accelerate's state is of the process: a run in it must not reach the next test."""

import pytest

from tests.pushing.conftest import here
from tests.training.conftest import forget_accelerate

__all__ = ["here"]


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerate():
    yield
    forget_accelerate()
