"""The exponentials of a softmax on CPUs, and a whole softmax of products where there are tiles.

Exponentials take two passes over memory in place of four. CPUs with tiles of bfloat16 (AMX) compute
the softmax of inner products with every item in one call; others may be faster or slower in
bfloat16 than in float32, which `seconds_of_products` measures.

Shapes: C rows, I columns or items, N lists of T columns, D embedding.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .library import ExponentialsCall, KernelLibrary, SoftmaxCall, installed_library

NUMBERS_A_THREAD = 2**16
"""Fewer are done sooner than another thread is started."""
MOST_ROWS, MOST_ITEMS = 2048, 2**14
"""Sizes beyond these change how long products take, but not in which type they are faster."""


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
    _check_lists(listed, len(x_CI))
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
    alive = _fill_lists(call, listed, x_CI.shape[1], listed_C)
    library.run("exponentials", call)
    sums_listed = alive is not None and math.isfinite(alive.bias)
    return Exponentials(largest_C, sum_C, listed_C if sums_listed else None)


def _fill_lists(
    call: Any, listed: Listed | None, n_columns: int, listed_C: Tensor
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


def _check_lists(listed: Listed | None, n_rows: int) -> None:
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
        _int64(given.lists),
        _int64(given.list),
        _int64(given.ahead.clamp(0, given.lists.shape[1])),
        given.bias,
        None if given.kept is None else _int64(given.kept),
    )


def _int64(tensor: Tensor) -> Tensor:
    """Return whole numbers as the kernels read them."""
    return tensor.to(torch.int64).contiguous()


class SoftmaxOfProducts(NamedTuple):
    """What a softmax of inner products with every item leaves, and its gradient.

    Attributes:
        exponentials: of the rows.
        target: the products with the targets (C,), before a bias.
        d_hidden: (C, D), the gradient of the log of the sum, weighted by share; None without.
    """

    exponentials: Exponentials
    target: Tensor
    d_hidden: Tensor | None


def has_softmax_of_products(hidden_CD: Tensor, items_ID: Tensor) -> bool:
    """Return whether `softmax_of_products` runs here and is for such numbers."""
    library = installed_library()
    fits = hidden_CD.is_cpu and hidden_CD.dtype == torch.float32
    fits = fits and items_ID.dtype == torch.bfloat16 and items_ID.numel() > 0
    return fits and isinstance(library, KernelLibrary) and library.has_tiles


def softmax_of_products(
    hidden_CD: Tensor,
    items_ID: Tensor,
    targets_C: Tensor,
    share_C: Tensor,
    listed: Listed | None = None,
    d_items_DI: Tensor | None = None,
) -> SoftmaxOfProducts:
    """Compute softmax(hidden @ items.T) a block of rows at a time, and what its gradient needs.

    The rows of a block go through the product, the exponentials and both products of the gradient
    while they lie in the cache. Factors, logits and exponentials are rounded to bfloat16; sums are
    not.

    Args:
        hidden_CD: float32.
        items_ID: bfloat16.
        targets_C: int64, rows of the items.
        share_C: float32, the weight of each row's gradient.
        listed: columns with a bias; None for none.
        d_items_DI: float32, contiguous; the gradient of the items, transposed, is added to it.
            None leaves out the gradients.

    Raises:
        IndexError: columns, lists or targets that are not there.
    """
    library = installed_library()
    assert isinstance(library, KernelLibrary)
    _check_lists(listed, len(hidden_CD))
    n_items = len(items_ID)
    if len(targets_C) and not 0 <= int(targets_C.min()) <= int(targets_C.max()) < n_items:
        raise IndexError(f"targets of a softmax must be in 0..{n_items - 1}")
    hidden_CD, items_ID = hidden_CD.contiguous(), items_ID.contiguous()
    targets_C, share_C = _int64(targets_C), share_C.contiguous()
    d_hidden_CD = None if d_items_DI is None else torch.empty_like(hidden_CD)
    largest_C, sum_C, target_C, listed_C = torch.zeros(4, len(hidden_CD)).unbind()
    call = SoftmaxCall(
        rows=len(hidden_CD), columns=n_items, size=hidden_CD.shape[1],
        threads=library.threads_for(len(hidden_CD) * n_items, least=NUMBERS_A_THREAD),
        hidden=hidden_CD.data_ptr(), items=items_ID.data_ptr(), targets=targets_C.data_ptr(),
        target=target_C.data_ptr(), largest=largest_C.data_ptr(), sum=sum_C.data_ptr(),
        share=share_C.data_ptr(),
        d_hidden=None if d_hidden_CD is None else d_hidden_CD.data_ptr(),
        d_items=None if d_items_DI is None else d_items_DI.data_ptr(),
    )  # fmt: skip
    alive = _fill_lists(call, listed, n_items, listed_C)
    if len(hidden_CD):
        library.run("softmax", call)
    of_listed_C = listed_C if alive is not None and math.isfinite(alive.bias) else None
    return SoftmaxOfProducts(Exponentials(largest_C, sum_C, of_listed_C), target_C, d_hidden_CD)


def seconds_of_products(
    n_rows: int, n_items: int, size: int, repeats: int = 5
) -> tuple[float, float]:
    """Measure a softmax of products and the products of its gradient on this CPU.

    Args:
        n_rows: positions of a step.
        n_items: items that each is multiplied with.
        size: of an embedding.
        repeats: the shortest of so many is returned.

    Returns:
        Seconds in bfloat16, and in float32.
    """
    hidden_CD = torch.ones(min(n_rows, MOST_ROWS), size)
    items_ID = torch.ones(min(n_items, MOST_ITEMS), size)
    types = (torch.bfloat16, torch.float32)
    seconds = [
        [_seconds_of_products(hidden_CD, items_ID, kind) for kind in types]
        for _ in range(repeats + 1)
    ]
    narrow, wide = (min(times) for times in zip(*seconds[1:], strict=True))  # The first warms up.
    return narrow, wide


def _seconds_of_products(hidden_CD: Tensor, items_ID: Tensor, kind: torch.dtype) -> float:
    start = time.perf_counter()
    factor_ID = items_ID.to(kind)
    d_items_DI = torch.zeros(items_ID.T.shape)
    if has_softmax_of_products(hidden_CD, factor_ID):
        rows_C = torch.zeros(len(hidden_CD), dtype=torch.int64)
        softmax_of_products(hidden_CD, factor_ID, rows_C, hidden_CD[:, 0], None, d_items_DI)
    else:
        narrow_CD = hidden_CD.to(kind)
        logits_CI = narrow_CD @ factor_ID.T
        exponentiate(logits_CI)
        (logits_CI @ factor_ID).float()
        d_items_DI += narrow_CD.T @ logits_CI
    return time.perf_counter() - start
