"""Dropout that does not draw a random number for each element, where the compiled kernels are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scans import cpu_kernel


class Dropout(nn.Dropout):
    """`nn.Dropout`; in training on a CPU by the package `ftmamba`'s kernel, many times faster."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training with elements dropped and the others scaled to keep the mean."""
        if not self.training or self.p == 0:
            return x
        kernel = self._kernel(x, "dropout")
        # bfloat16, which autocast makes, goes back to what it is added to.
        return super().forward(x) if kernel is None else kernel(x.float(), self.p)

    def after_gelu(self, x: Tensor) -> Tensor:
        """Return `self(gelu(x))`, in training on a CPU in one pass over memory."""
        kernel = self._kernel(x, "gelu_dropout") if self.training else None
        return self(F.gelu(x)) if kernel is None else kernel(x, self.p)

    def sum_with(self, hidden: Tensor, x: Tensor) -> Tensor:
        """Return `hidden + self(x)`, in training on a CPU in one pass over memory."""
        fits = self.training and self.p > 0 and hidden.dtype == torch.float32
        kernel = self._kernel(x, "dropout_sum") if fits and hidden.shape == x.shape else None
        return hidden + self(x) if kernel is None else kernel(hidden, x, self.p)

    def _kernel(self, x: Tensor, name: str) -> Callable[..., Tensor] | None:
        fits = x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and self.p < 1
        return cpu_kernel(name) if fits and not torch.compiler.is_compiling() else None
