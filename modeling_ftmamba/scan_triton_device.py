"""Where Triton kernels can run, and how much of them a GPU takes at once."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Programs are one warp each. A processor, as NVIDIA's GPUs have about a hundred, has four
# schedulers, and registers for so many warps of the backward.
FEW_WARPS_A_PROCESSOR = 2
FULL_WARPS_A_PROCESSOR = 12
REGISTERS = 168


def why_not() -> str | None:
    """Return None where Triton kernels can run on this machine, else the reason and the remedy."""
    try:
        from .scan_triton_kernels import INTERPRETED
    except ImportError as error:
        return f"the triton scan cannot run here: {error}, or model.set_scan('auto')"
    if torch.cuda.is_available() or INTERPRETED:
        return None
    return (
        "the triton scan cannot run here: it needs a GPU, and torch.cuda.is_available() is False; "
        "install torch for CUDA, or model.set_scan('auto')"
    )


def refuse_elsewhere(tensor: Tensor) -> None:
    """Raise RuntimeError, with the reason, where Triton cannot run on the tensor."""
    if reason := why_not():
        raise RuntimeError(reason)
    from .scan_triton_kernels import INTERPRETED

    if not tensor.is_cuda and not INTERPRETED:
        raise RuntimeError(
            f"the triton scan runs on CUDA tensors, got tensors on {tensor.device}; "
            "move model and inputs there with .to('cuda'), or model.set_scan('auto')"
        )


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def n_processors(device: torch.device) -> int:
    """Return the number of a GPU's processors; two stand for the interpreter's."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def n_groups(device: torch.device, n_tiles: int, n_items: int) -> int:
    """Return how many programs share a tile's items, so that together they fill the GPU once."""
    return max(1, min(n_items, n_processors(device) * FULL_WARPS_A_PROCESSOR // n_tiles))


def few_registers() -> dict[str, int]:
    """Return the option that limits the backward's registers; AMD's compiler has none."""
    return {} if torch.version.hip else {"maxnreg": REGISTERS}


def run_side_by_side(device: torch.device, n_programs: int, n_chunks: int) -> bool:
    """Decide whether the chunks of a record run side by side.

    They compute every decay once more then: worth it where the programs that take whole records
    leave more than half of the GPU's schedulers idle.
    """
    return n_chunks > 2 and n_programs < FEW_WARPS_A_PROCESSOR * n_processors(device)
