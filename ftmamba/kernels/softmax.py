"""The exponentials of a softmax on CPUs, in place and in two passes over memory instead of four."""

import torch
from torch import Tensor

from .library import ExponentialsCall, KernelLibrary, installed_library

NUMBERS_A_THREAD = 2**16
"""Fewer are done sooner than another thread is started."""


def exponentiate(x_CI: Tensor) -> tuple[Tensor, Tensor]:
    """Replace x by exp(x - largest of its row).

    Args:
        x_CI: of floating point, contiguous; the kernel takes float32 and bfloat16.

    Returns:
        The rows' largest numbers and sums (C,), in float32 at least; of bfloat16 what is summed up
        is not rounded.
    """
    library = installed_library()
    takes = x_CI.is_cpu and x_CI.numel() > 0 and x_CI.dtype in (torch.float32, torch.bfloat16)
    if takes and isinstance(library, KernelLibrary):
        return _compiled(library, x_CI)
    wide_CI = x_CI.to(torch.promote_types(x_CI.dtype, torch.float32))
    largest_C = wide_CI.amax(1)
    exponentials_CI = (wide_CI - largest_C[:, None]).exp_()
    x_CI.copy_(exponentials_CI)
    return largest_C, exponentials_CI.sum(1)


def _compiled(library: KernelLibrary, x_CI: Tensor) -> tuple[Tensor, Tensor]:
    largest_C, sum_C = torch.empty(2, len(x_CI)).unbind()
    call = ExponentialsCall(
        rows=x_CI.shape[0],
        columns=x_CI.shape[1],
        threads=library.threads_for(x_CI.numel(), least=NUMBERS_A_THREAD),
        narrow=x_CI.dtype == torch.bfloat16,
        x=x_CI.data_ptr(),
        largest=largest_C.data_ptr(),
        sum=sum_C.data_ptr(),
    )
    library.run("exponentials", call)
    return largest_C, sum_C
