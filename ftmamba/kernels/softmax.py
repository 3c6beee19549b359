"""The exponentials of a softmax on CPUs, in place and in two passes over memory instead of four.

Shapes: C rows, I columns, N lists of T columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .library import ExponentialsCall, KernelLibrary, installed_library

NUMBERS_A_THREAD = 2**16
"""Fewer are done sooner than another thread is started."""


class LeftOut(NamedTuple):
    """Columns that count as minus infinity: of each row the first few of one of the lists.

    Attributes:
        lists: int64 (N, T), columns.
        list: int64 (C,), which of them is a row's.
        ahead: int64 (C,), how many of it are left out; more than T are T.
        kept: int64 (C,), a column that stays although it may be among them.
    """

    lists: Tensor
    list: Tensor
    ahead: Tensor
    kept: Tensor

    def write(self, x_CI: Tensor) -> None:
        """Set them to minus infinity, in place."""
        kept_C1 = self.kept[:, None]
        columns_CT = self.lists[self.list]
        is_out_CT = torch.arange(columns_CT.shape[1], device=x_CI.device) < self.ahead[:, None]
        numbers_C1 = x_CI.gather(1, kept_C1)
        x_CI.scatter_(1, torch.where(is_out_CT, columns_CT, kept_C1), -torch.inf)
        x_CI.scatter_(1, kept_C1, numbers_C1)


def exponentiate(x_CI: Tensor, left_out: LeftOut | None = None) -> tuple[Tensor, Tensor]:
    """Replace x by exp(x - largest of its row).

    Args:
        x_CI: of floating point, contiguous; the kernel takes float32 and bfloat16.
        left_out: whose exponentials are zero; None leaves out none.

    Returns:
        The rows' largest numbers and sums (C,), in float32 at least; of bfloat16 what is summed up
        is not rounded.

    Raises:
        IndexError: columns or lists that are not there.
    """
    if left_out is not None:
        if any(tensor.shape != (len(x_CI),) for tensor in left_out[1:]):
            raise IndexError(
                f"a softmax of {len(x_CI)} rows must know for each what it leaves out, got shapes "
                f"{[tuple(tensor.shape) for tensor in left_out[1:]]}"
            )
        left_out = left_out if left_out.lists.shape[1] else None
    library = installed_library()
    takes = x_CI.is_cpu and x_CI.numel() > 0 and x_CI.dtype in (torch.float32, torch.bfloat16)
    if takes and isinstance(library, KernelLibrary):
        return _compiled(library, x_CI, left_out)
    if left_out is not None:
        left_out.write(x_CI)
    wide_CI = x_CI.to(torch.promote_types(x_CI.dtype, torch.float32))
    largest_C = wide_CI.amax(1)
    exponentials_CI = (wide_CI - largest_C[:, None]).exp_()
    x_CI.copy_(exponentials_CI)
    return largest_C, exponentials_CI.sum(1)


def _compiled(
    library: KernelLibrary, x_CI: Tensor, left_out: LeftOut | None
) -> tuple[Tensor, Tensor]:
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
    if left_out is not None:
        left_out = _checked(left_out, x_CI)
        call.width = left_out.lists.shape[1]
        for name, tensor in left_out._asdict().items():
            setattr(call, name, tensor.data_ptr())
    library.run("exponentials", call)
    return largest_C, sum_C


def _checked(given: LeftOut, x_CI: Tensor) -> LeftOut:
    """Return what the kernel reads without looking."""
    columns = x_CI.shape[1]
    for name, tensor, end in (
        ("lists", given.lists, columns),
        ("list", given.list, len(given.lists)),
        ("kept", given.kept, columns),
    ):
        least, most = (int(one) for one in tensor.aminmax()) if tensor.numel() else (0, -1)
        if least < 0 or most >= end:
            raise IndexError(
                f"`{name}` of what a softmax leaves out must be in 0..{end - 1}, got "
                f"{least}..{most}"
            )
    within = given._replace(ahead=given.ahead.clamp(0, given.lists.shape[1]))
    return LeftOut(*(tensor.to(torch.int64).contiguous() for tensor in within))
