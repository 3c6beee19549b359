"""The checkerboard, the small model and Accelerate on the CPU."""

import gc

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from . import toy as toy_module


@pytest.fixture(autouse=True, scope="package")
def _cheap_collections():
    """Every `fit` ends with a collection, which walks whatever the other tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def toy():
    return toy_module


@pytest.fixture(params=[False, True], ids=["timeless", "with popularity"])
def either_data(tmp_path, request):
    return toy_module.encoded(tmp_path / "data", with_popularity=request.param)


@pytest.fixture
def data(tmp_path):
    return toy_module.encoded(tmp_path / "data")


def forget_accelerate():
    """Forget what a process sets once, such as the precision."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    forget_accelerate()
