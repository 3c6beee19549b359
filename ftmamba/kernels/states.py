"""What both operators share: the library, the layout of kept states, memory as pointers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .library import KernelLibrary, installed_library

LONGEST_CHUNK = 32
"""Tokens of a chunk at most; csrc/scan.h."""


def library() -> KernelLibrary:
    """Return the library.

    Raises:
        RuntimeError: it is not installed, and why.
    """
    found = installed_library()
    if isinstance(found, str):
        raise RuntimeError(f"the compiled scan cannot run: {found}")
    return found


def state_shape(batch: int, length: int, inner: int, state: int) -> tuple[int, int, int, int]:
    """Return the shape of the states ahead of every chunk but the first; csrc/blocks.h."""
    n_chunks = 0
    if length:
        chunk = _ceil(length, _ceil(length, LONGEST_CHUNK))
        n_chunks = _ceil(length, chunk) - 1
    return batch, n_chunks, _ceil(state, 4) * 4, _ceil(inner, 16) * 16


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def as_pointers(tensors: Mapping[str, Tensor | None]) -> tuple[dict[str, int | None], list[Tensor]]:
    """Return the addresses of contiguous memory and the tensors that own it."""
    alive: list[Tensor] = []
    pointers: dict[str, int | None] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            pointers[name] = None
            continue
        contiguous = tensor.contiguous()
        alive.append(contiguous)
        pointers[name] = contiguous.data_ptr()
    return pointers, alive


def is_kept(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow, so that states must be kept."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
