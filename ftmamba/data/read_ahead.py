"""Items made ready in a thread of their own, a few ahead of their use."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

N_AHEAD = 2
"""One item to hand over at once and one behind it; more takes memory and no less time."""

_END = object()


@contextmanager
def read_ahead(items: Iterable[T], *, n_ahead: int = N_AHEAD) -> Iterator[Iterator[T]]:
    """Iterate in a thread; inside the `with`, the items come in their order.

    What the thread raises is raised where the item would have come, with the thread's traceback
    and a note that says which item it was. Leaving the `with` early, by `break` or an exception,
    stops the thread and waits for its end. It gains time only while items are made without the
    interpreter's lock: reading, copying and NumPy's loops let go of it.

    Args:
        items: iterated in the thread alone, and closed there if it is a generator.
        n_ahead: items that may wait for their use; one more may be in the making.
    """
    if n_ahead < 1:
        raise ValueError(f"n_ahead must be >= 1, got {n_ahead}")
    iterator, waiting = iter(items), deque[Future[object]]()
    n_made = 0

    def make() -> object:
        nonlocal n_made
        try:
            item = next(iterator, _END)
        except BaseException as error:
            error.add_note(f"raised in the thread that reads ahead, by item {n_made}")
            raise
        n_made += 1
        return item

    def in_order() -> Iterator[T]:
        while waiting:
            first = waiting.popleft()
            item = first.result()
            if item is _END:
                return
            waiting.append(thread.submit(make))
            yield item  # type: ignore[misc]

    with ThreadPoolExecutor(1, "read_ahead") as thread:
        try:
            waiting.extend(thread.submit(make) for _ in range(n_ahead + 1))
            yield in_order()
        finally:
            for future in waiting:
                future.cancel()
            waiting.clear()
            if isinstance(iterator, Generator):
                thread.submit(iterator.close)


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
    """Return tensors on a device, without waiting for copies from page-locked memory."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
