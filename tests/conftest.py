"""Fixtures for all tests: one thread, and tensor names that are held to their shapes."""

import pytest
import torch
from transformers.utils import logging

from .shape_suffixes import checked_shapes as check


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded():
    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def checked_shapes():
    """Context manager that holds a package's tensor names to their shapes."""
    return check
