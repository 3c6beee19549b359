"""Items made ready in a thread of their own, a few ahead of whoever uses them."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

N_AHEAD = 2
"""One item to hand over at once and one behind it; more takes memory and no less time."""


@contextmanager
def read_ahead(items: Iterable[T], *, n_ahead: int = N_AHEAD) -> Iterator[Iterator[T]]:
    """Iterate in a thread; inside the `with`, the items come in their order.

    What the thread raises is raised where the item would have come, with the thread's traceback
    and a note that says which item it was. Leaving the `with` early, by `break` or an exception,
    stops the thread and waits for its end. It gains time only while items are made without the
    interpreter's lock: reading, copying and NumPy's loops let go of it.

    Args:
        items: iterated in the thread alone, and closed there if it is a generator.
        n_ahead: items that may wait to be taken; one more may be in the making.
    """
    if n_ahead < 1:
        raise ValueError(f"n_ahead must be >= 1, got {n_ahead}")
    made: Queue[_Made[T]] = Queue(n_ahead)
    stopped = Event()
    thread = Thread(target=_make, args=(items, made, stopped), name="read_ahead", daemon=True)
    thread.start()
    try:
        yield _taken(made)
    finally:
        stopped.set()
        _empty(made)
        thread.join()
        _empty(made)
        made.put(_Made())


def pinned(tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    """Return tensors in page-locked memory if they will go to a CUDA device, else as they are.

    From there `to_device` copies while the processor goes on. Page-locking itself is slow: do it in
    the thread that reads ahead.
    """
    if device.type != "cuda":
        return tensors
    # It is done for the current device, which every thread has for itself.
    with torch.cuda.device(device):
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors on a device; nobody waits for the copies of those in page-locked memory."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Made(Generic[T]):
    """One item, or the error in its place, or neither: the end."""

    items: tuple[T, ...] = ()
    error: BaseException | None = None


def _make(items: Iterable[T], made: Queue[_Made[T]], stopped: Event) -> None:
    n_made = 0
    try:
        for item in items:
            made.put(_Made((item,)))
            n_made += 1
            # A stopped thread puts at most one thing more, for which room has been made.
            if stopped.is_set():
                break
        else:
            made.put(_Made())
    except BaseException as error:
        error.add_note(f"raised in the thread that reads ahead, by item {n_made}")
        made.put(_Made(error=error))
    finally:
        if isinstance(items, Generator):
            items.close()


def _taken(made: Queue[_Made[T]]) -> Iterator[T]:
    while True:
        got = made.get()
        if got.error is not None:
            raise got.error
        if not got.items:
            return
        yield got.items[0]


def _empty(made: Queue[_Made[T]]) -> None:
    try:
        while True:
            made.get_nowait()
    except Empty:
        pass
