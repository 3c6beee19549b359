"""Fixtures for all tests: one thread, and tensor names that are held to their shapes.

With FTMAMBA_FORBID_SKIPS set, as in continuous integration, a test that skips has failed, unless it
needs a GPU: there the data and programs that tests need are installed first.
"""

import os

import pytest
import torch
from transformers.utils import logging

from .hub.fixtures import hub, hub_client, hub_environment, own_hub  # noqa: F401 - fixtures
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


def pytest_itemcollected(item):
    """Let the Hub's client call its own library in a way that this library has given up."""
    if {"hub", "own_hub"} & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    forbidden = os.environ.get("FTMAMBA_FORBID_SKIPS") and "gpu" not in item.keywords
    if forbidden and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which FTMAMBA_FORBID_SKIPS forbids: {report.longrepr}"
    return report
