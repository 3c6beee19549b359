"""What a user took before each position: items that may be left out of what is to come.

Shapes: B windows, T events of the longest, M positions, C positions of a chunk, I items.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def exclude(self, logits_CI: Tensor, targets_C: Tensor, positions: slice) -> None:
        """Set the logits of what was taken before to minus infinity, in place; a target's stays.

        Args:
            logits_CI: of a chunk of positions.
            targets_C: int64, the item that came next, which may have been taken before too.
            positions: which of the M positions these are.
        """
        if self.items.shape[1] == 0:
            return
        taken_CT = self.items[self.windows[positions]]
        steps_T = torch.arange(taken_CT.shape[1], device=taken_CT.device)
        is_ahead_CT = steps_T < self.lengths[positions][:, None]
        targets_C1 = targets_C[:, None]
        out = torch.tensor(-torch.inf, dtype=logits_CI.dtype)
        if logits_CI.dtype == torch.bfloat16:
            # torch scatters numbers of 16 bits on CPUs many times faster if they are whole.
            logits_CI, out = logits_CI.view(torch.int16), out.view(torch.int16)
        kept_C1 = logits_CI.gather(1, targets_C1)
        logits_CI.scatter_(1, torch.where(is_ahead_CT, taken_CT, targets_C1), out.item())
        logits_CI.scatter_(1, targets_C1, kept_C1)
