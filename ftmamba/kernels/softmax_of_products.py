"""The softmax of inner products with every item on CPUs with tiles of bfloat16 (AMX).

Other CPUs may be faster or slower in bfloat16 than in float32; `seconds_of_products` measures it.

Shapes: C rows, I items, D embedding.
"""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from .library import KernelLibrary, SoftmaxCall, installed_library
from .softmax import (
    NUMBERS_A_THREAD,
    Exponentials,
    Listed,
    check_lists,
    exponentiate,
    fill_lists,
    int64,
)

MOST_ROWS, MOST_ITEMS = 2048, 2**14
"""Sizes beyond these change how long products take, but not in which type they are faster."""


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
    check_lists(listed, len(hidden_CD))
    n_items = len(items_ID)
    if len(targets_C) and not 0 <= int(targets_C.min()) <= int(targets_C.max()) < n_items:
        raise IndexError(f"targets of a softmax must be in 0..{n_items - 1}")
    hidden_CD, items_ID = hidden_CD.contiguous(), items_ID.contiguous()
    targets_C, share_C = int64(targets_C), share_C.contiguous()
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
    alive = fill_lists(call, listed, n_items, listed_C)
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
