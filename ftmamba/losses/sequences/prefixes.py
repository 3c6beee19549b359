"""What a user took before each position, which a softmax over items may treat apart.

Shapes: B windows, T events of the longest, M positions, C positions of a chunk, I items.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ftmamba.kernels.softmax import Exponentials, Listed


@dataclass(frozen=True)
class Prefixes:
    """The items ahead of every position.

    Attributes:
        items: int64 (B, T), the items of each window, rows of the embeddings of items.
        windows: int64 (M,), which window a position is in.
        lengths: int64 (M,), how many items of its window are ahead of it.
    """

    items: Tensor
    windows: Tensor
    lengths: Tensor

    def left_out(self, positions: slice, targets_C: Tensor) -> Listed:
        """Return a chunk's items as ones to leave out; a target, taken before or not, stays.

        Args:
            positions: which of the M positions these are.
            targets_C: int64, the item that came next.
        """
        windows_C, lengths_C = self.windows[positions], self.lengths[positions]
        return Listed(self.items, windows_C, lengths_C, kept=targets_C)

    def biased(self, positions: slice, bias: float) -> Listed:
        """Return a chunk's items as ones whose logits get a bias, once each."""
        return Listed(self._distinct, self.windows[positions], self.lengths[positions], bias)

    @cached_property
    def _distinct(self) -> Tensor:
        """The items (B, T), -1 where one has been in its window before."""
        sorted_BT, order_BT = self.items.sort(dim=1, stable=True)
        again_BT = torch.zeros_like(self.items, dtype=torch.bool)
        again_BT[:, 1:] = sorted_BT[:, 1:] == sorted_BT[:, :-1]
        return self.items.masked_fill(torch.zeros_like(again_BT).scatter(1, order_BT, again_BT), -1)


class TakenBefore:
    """What a softmax does with the items ahead of positions: they are left out, or get a bias.

    Args:
        prefixes: these items.
        repeat_bias: (1,), added to their logits; None leaves them out.
    """

    def __init__(self, prefixes: Prefixes, repeat_bias: Tensor | None) -> None:
        self._prefixes = prefixes
        self._bias = None if repeat_bias is None else float(repeat_bias)
        kind = torch.float32 if repeat_bias is None else repeat_bias.dtype
        self.d_repeat_bias = torch.zeros(1, dtype=kind, device=prefixes.items.device)

    def listed(self, positions: slice, targets_C: Tensor) -> Listed:
        """Return a chunk's items ahead, as `exponentiate` takes them."""
        if self._bias is None:
            return self._prefixes.left_out(positions, targets_C)
        return self._prefixes.biased(positions, self._bias)

    def add_labels(
        self, listed: Listed, found: Exponentials, targets_C: Tensor, share_C: Tensor,
        smoothing: float, n: int,
    ) -> Tensor | float:  # fmt: skip
        """Add a chunk's gradient of the bias: probabilities of listed items less their labels.

        Returns:
            What the bias adds to the logits (C,) that the labels of n items weigh.
        """
        if self._bias is None or found.listed is None:
            return 0.0
        label_C = self._label(listed, targets_C, smoothing, n)
        self.d_repeat_bias += (share_C * (found.listed / found.sum - label_C)).sum()
        return self._bias * label_C

    def _label(self, listed: Listed, targets_C: Tensor, smoothing: float, n: int) -> Tensor:
        """Return the share (C,) of each label that is on items ahead."""
        columns_CT, counts_CT = listed.columns()
        is_target_C = ((columns_CT == targets_C[:, None]) & counts_CT).any(1)
        label_C = (1 - smoothing) * is_target_C.to(self.d_repeat_bias)
        return (
            label_C + smoothing / n * counts_CT.sum(1).to(self.d_repeat_bias)
            if smoothing
            else label_C
        )
