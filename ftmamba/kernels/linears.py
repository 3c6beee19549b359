"""Linear maps through whichever matrix product of torch is faster on this CPU.

torch has two of them for float32: MKL's, behind `F.linear`, and oneDNN's, behind an operator that
adds the bias on the way. Measured on one thread with maps of 64-192 to 64-576 channels:

- AMD (Zen 5): oneDNN is 2.2-2.5 times as fast above some 200 tokens, and slower below.
- Intel (Xeon with AMX): as products alone MKL is never slower. With a bias, which `F.linear` first
  copies to every token, oneDNN is 1.1-1.3 times as fast from some 1,000 tokens.

So the choice depends on the CPU's vendor and on sizes alone; timing both at run time would make
results depend on chance. Both round as float32 does, and nothing global is set. (The global
`set_float32_matmul_precision("medium")` also leads to oneDNN, but to products in bfloat16.)

Shapes: T tokens in all, I inputs, O outputs.
"""

import functools
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def apply_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Compute `module(x)`, forward and backward, faster where that is possible."""
    return apply_linear_in_chunks(module, x, 1)[0]


def apply_linear_in_chunks(module: nn.Linear, x: Tensor, n_chunks: int) -> tuple[Tensor, ...]:
    """Compute `module(x).chunk(n_chunks, -1)`.

    Where oneDNN is used each chunk is a product of its own: it lies contiguous in memory, and its
    gradient is not copied into that of the whole.
    """
    n_tokens = x.numel() // max(1, x.shape[-1])
    with_bias = module.bias is not None
    eager = not torch.compiler.is_compiling()
    if eager and onednn_is_faster(n_tokens, with_bias=with_bias) and _is_plain(x, module):
        chunks: tuple[Tensor, ...] = _Linear.apply(x, module.weight, module.bias, n_chunks)
        return chunks
    whole = module(x)
    return (whole,) if n_chunks == 1 else whole.chunk(n_chunks, -1)


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is just that class: its parameters say it all.

    A module of another class, with a hook or with a forward of its own, other than those that
    `attach` binds, is an adapter or an observer, and must run.
    """
    if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001
        return False
    own = vars(module).get("forward")
    return own is None or own.__module__.startswith(__package__)


def product_into(out_TO: Tensor, x_TI: Tensor, weight_OI: Tensor) -> None:
    """Write x times the transposed weight into `out_TO`, without a gradient."""
    onednn = x_TI.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if onednn and onednn_is_faster(len(x_TI), with_bias=False):
        out_TO.copy_(_product(x_TI, weight_OI))
    else:
        torch.mm(x_TI, weight_OI.t(), out=out_TO)


def onednn_is_faster(n_tokens: int, *, with_bias: bool) -> bool:
    """Return whether oneDNN's matrix products beat `F.linear` on this CPU; see above."""
    if cpu_vendor() == "AuthenticAMD":
        return n_tokens >= 256
    return cpu_vendor() == "GenuineIntel" and with_bias and n_tokens >= 1024


@functools.cache
def cpu_vendor() -> str:
    """Return `AuthenticAMD`, `GenuineIntel`, or an empty string for any other."""
    try:
        description = Path("/proc/cpuinfo").read_text()
    except OSError:
        description = platform.processor()
    vendors = ("AuthenticAMD", "GenuineIntel")
    return next((vendor for vendor in vendors if vendor in description), "")


def _is_plain(x: Tensor, module: nn.Linear) -> bool:
    """Return whether an eager float32 product on the CPU is asked for."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and is_untouched(module, nn.Linear)
        and module.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    fused = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - torch has no public name for it
    return fused(x_TI, weight_OI, bias_O, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, n_chunks: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight_OI)
        x_TI = x.reshape(-1, x.shape[-1])
        biases = [None] * n_chunks if bias_O is None else bias_O.chunk(n_chunks)
        outputs = map(partial(_product, x_TI), weight_OI.chunk(n_chunks), biases)
        return tuple(output.view(*x.shape[:-1], output.shape[1]) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_chunks: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        ds = [d.flatten(0, -2) for d in d_chunks]
        d_x = _input_gradient(ds, weight_OI.chunk(len(ds))).view(x.shape) if wants_x else None
        d_weight_OI = _weight_gradient(ds, x.reshape(-1, x.shape[-1])) if wants_weight else None
        d_bias_O = torch.cat([d.sum(0) for d in ds]) if wants_bias else None
        return d_x, d_weight_OI, d_bias_O, None


def _input_gradient(ds: list[Tensor], weights: tuple[Tensor, ...]) -> Tensor:
    """Return the sum of d @ weight (T, I)."""
    if onednn_is_faster(len(ds[0]), with_bias=False):
        return functools.reduce(Tensor.add_, map(_product, ds, [w.t() for w in weights]))
    d_x_TI = ds[0] @ weights[0]
    for d_TO, weight_OI in zip(ds[1:], weights[1:], strict=True):
        d_x_TI.addmm_(d_TO, weight_OI)
    return d_x_TI


def _weight_gradient(ds: list[Tensor], x_TI: Tensor) -> Tensor:
    """Return (O, I), by MKL: oneDNN would first transpose both factors in memory."""
    d_weight_OI = x_TI.new_empty(sum(d.shape[1] for d in ds), x_TI.shape[1])
    for d_TO, out in zip(ds, d_weight_OI.chunk(len(ds)), strict=True):
        torch.mm(d_TO.t(), x_TI, out=out)
    return d_weight_OI
