"""The exponentials of a softmax on CPUs, in place and in two passes over memory instead of four.

Shapes: C rows, I columns, N lists of T columns.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .library import ExponentialsCall, KernelLibrary, SoftmaxCall, installed_library

NUMBERS_A_THREAD = 2**16
"""Fewer are done sooner than another thread is started."""


class Listed(NamedTuple):
    """Columns of each row to which a bias is added: the first few of one of the lists.

    Attributes:
        lists: int64 (N, T), columns; -1 is none.
        list: int64 (C,), which of them is a row's.
        ahead: int64 (C,), how many of it count; more than T are T.
        bias: what is added once; with minus infinity the columns are left out. A column must not
            be on a list twice if the bias is finite.
        kept: int64 (C,), a column that stays as it is although it may be listed; None for none.
    """

    lists: Tensor
    list: Tensor
    ahead: Tensor
    bias: float = -math.inf
    kept: Tensor | None = None

    def columns(self) -> tuple[Tensor, Tensor]:
        """Return columns (C, T), and which of them count."""
        columns_CT = self.lists[self.list]
        steps_T = torch.arange(columns_CT.shape[1], device=columns_CT.device)
        return columns_CT, (steps_T < self.ahead[:, None]) & (columns_CT >= 0)

    def mask(self, n_columns: int) -> Tensor:
        """Return which numbers get the bias, bool (C, I)."""
        columns_CT, counts_CT = self.columns()
        # What does not count is written beyond the end.
        mask_CI = counts_CT.new_zeros(len(columns_CT), n_columns + 1)
        mask_CI.scatter_(1, columns_CT.masked_fill(~counts_CT, n_columns), value=True)
        if self.kept is not None:
            mask_CI.scatter_(1, self.kept[:, None], value=False)
        return mask_CI[:, :n_columns]


class Exponentials(NamedTuple):
    """What is known of the rows whose exponentials were made; float32 at least.

    Attributes:
        largest: their largest numbers (C,).
        sum: sums of the exponentials (C,); of bfloat16 what is summed up is not rounded.
        listed: sums of the listed columns alone (C,); None where the bias is infinite.
    """

    largest: Tensor
    sum: Tensor
    listed: Tensor | None


def exponentiate(x_CI: Tensor, listed: Listed | None = None) -> Exponentials:
    """Replace x by exp(x - largest of its row), after a bias for some columns.

    Args:
        x_CI: of floating point, contiguous; the kernel takes float32 and bfloat16.
        listed: columns with a bias; None for none.

    Raises:
        IndexError: columns or lists that are not there.
    """
    check_lists(listed, len(x_CI))
    library = installed_library()
    takes = x_CI.is_cpu and x_CI.numel() > 0 and x_CI.dtype in (torch.float32, torch.bfloat16)
    if takes and isinstance(library, KernelLibrary):
        return _compiled(library, x_CI, listed)
    wide_CI = x_CI.to(torch.promote_types(x_CI.dtype, torch.float32))
    mask_CI = None if listed is None else listed.mask(x_CI.shape[1])
    if mask_CI is not None and listed is not None:
        wide_CI = torch.where(mask_CI, (wide_CI + listed.bias).to(x_CI.dtype), wide_CI)
    largest_C = wide_CI.amax(1)
    exponentials_CI = (wide_CI - largest_C[:, None]).exp_()
    x_CI.copy_(exponentials_CI)
    of_listed_C = None
    if mask_CI is not None and listed is not None and math.isfinite(listed.bias):
        of_listed_C = (exponentials_CI * mask_CI).sum(1)
    return Exponentials(largest_C, exponentials_CI.sum(1), of_listed_C)


def _compiled(library: KernelLibrary, x_CI: Tensor, listed: Listed | None) -> Exponentials:
    largest_C, sum_C, listed_C = torch.zeros(3, len(x_CI)).unbind()
    call = ExponentialsCall(
        rows=x_CI.shape[0],
        columns=x_CI.shape[1],
        stride=x_CI.shape[1],
        threads=library.threads_for(x_CI.numel(), least=NUMBERS_A_THREAD),
        narrow=x_CI.dtype == torch.bfloat16,
        x=x_CI.data_ptr(),
        largest=largest_C.data_ptr(),
        sum=sum_C.data_ptr(),
    )
    alive = fill_lists(call, listed, x_CI.shape[1], listed_C)
    library.run("exponentials", call)
    sums_listed = alive is not None and math.isfinite(alive.bias)
    return Exponentials(largest_C, sum_C, listed_C if sums_listed else None)


def fill_lists(
    call: ExponentialsCall | SoftmaxCall, listed: Listed | None, n_columns: int, listed_C: Tensor
) -> Listed | None:
    """Write the lists into a call; return them as the kernel reads them, to be kept until then."""
    if listed is None or not listed.lists.shape[1]:
        return listed
    listed = _checked(listed, n_columns)
    call.width, call.bias = listed.lists.shape[1], listed.bias
    call.lists, call.list = listed.lists.data_ptr(), listed.list.data_ptr()
    call.ahead = listed.ahead.data_ptr()
    call.kept = None if listed.kept is None else listed.kept.data_ptr()
    call.listed = listed_C.data_ptr() if math.isfinite(listed.bias) else None
    return listed


def check_lists(listed: Listed | None, n_rows: int) -> None:
    """Raise IndexError unless every row has a list."""
    if listed is not None and {listed.list.shape, listed.ahead.shape} != {(n_rows,)}:
        raise IndexError(
            f"each of the {n_rows} rows of a softmax must have a list of columns, got shapes "
            f"{tuple(listed.list.shape)} and {tuple(listed.ahead.shape)}"
        )


def _checked(given: Listed, n_columns: int) -> Listed:
    """Return what the kernel reads without looking."""
    for name, tensor, first, end in (
        ("lists", given.lists, -1, n_columns),
        ("list", given.list, 0, len(given.lists)),
        ("kept", given.kept, 0, n_columns),
    ):
        if tensor is None:
            continue
        least, most = (int(one) for one in tensor.aminmax())
        if least < first or most >= end:
            raise IndexError(
                f"`{name}` of the columns of a softmax must be in {first}..{end - 1}, got "
                f"{least}..{most}"
            )
    if given.kept is not None and given.kept.shape != given.list.shape:
        raise IndexError(f"`kept` must have a column a row, got shape {tuple(given.kept.shape)}")
    return Listed(
        int64(given.lists),
        int64(given.list),
        int64(given.ahead.clamp(0, given.lists.shape[1])),
        given.bias,
        None if given.kept is None else int64(given.kept),
    )


def int64(tensor: Tensor) -> Tensor:
    """Return whole numbers as the kernels read them."""
    return tensor.to(torch.int64).contiguous()
