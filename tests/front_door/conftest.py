"""Accelerate's state is of the process: a run in it must not reach the next test."""

import pytest

from tests.training.conftest import forget_accelerate


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerate():
    yield
    forget_accelerate()
