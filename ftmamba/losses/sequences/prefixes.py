"""What a user took before each position: items that may be left out of what is to come.

Shapes: B windows, T events of the longest, M positions, C positions of a chunk, I items.
"""

from dataclasses import dataclass

from torch import Tensor

from ftmamba.kernels.softmax import LeftOut


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

    def of_chunk(self, positions: slice, targets_C: Tensor) -> LeftOut:
        """Return what a softmax over items leaves out; a target, taken before or not, stays.

        Args:
            positions: which of the M positions these are.
            targets_C: int64, the item that came next.
        """
        return LeftOut(self.items, self.windows[positions], self.lengths[positions], targets_C)
