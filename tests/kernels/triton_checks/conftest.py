"""Fixtures of the checks of the Triton kernels."""

import pytest
import torch

from ftmamba.kernels import triton_launch

FULL_GPU, EMPTY_GPU = 0, 10**6
"""Processors of a GPU that is so full, or so empty, that it decides how chunks run."""


@pytest.fixture(autouse=True, scope="session")
def _helpers_run_at_once():
    """Let our kernels' helpers run as they are: the launch has patched Triton's language for them.

    The interpreter patches it anew at every call of a helper, which is half of its time.
    """
    from triton.runtime.interpreter import InterpretedFunction

    call = InterpretedFunction.__call__

    def call_at_once(fn, *given, **named):
        theirs = fn.fn.__module__.startswith("triton.")
        return call(fn, *given, **named) if theirs else fn.rewrite()(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call_at_once)
        yield


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill memory that is only asked for, so that an element never written is seen."""
    ask, poisoned = torch.Tensor.new_empty, []

    def new_empty(tensor, *arguments, **options):
        made = ask(tensor, *arguments, **options)
        poisoned.append(made.numel())
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    return poisoned


@pytest.fixture(params=[FULL_GPU, EMPTY_GPU], ids=["one_after_the_other", "side_by_side"])
def chunked(request, monkeypatch):
    """Short chunks, which run one after the other or side by side."""
    monkeypatch.setattr(triton_launch, "CHUNK", 6)
    monkeypatch.setattr(triton_launch, "SPAN", 4)
    monkeypatch.setattr(triton_launch, "n_processors", lambda _: request.param)
