"""The fused Mamba layer on CPUs: `torch.ops.ftmamba.mamba_layer`, with its gradient.

One call does norm, in_proj, convolution, SiLU, x_proj, dt_proj, softplus, scan, skip, gate,
out_proj and the residual sum, a block of tokens at a time in the cache. The backward pass computes
the insides again from the layer's input, so nothing but the input and, beyond 32 tokens, one state
a chunk is kept.

Shapes: B batch, L tokens, D hidden, E inner channels, N state.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_layer, float32
from .dropout_op import draw_seed
from .library import LayerCall
from .states import as_pointers, is_kept, library, state_shape

# Names of the tensors as `LayerCall` has them, in the order of the operator's arguments.
_TENSORS = (
    "x", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_weight", "dt_bias", "A_log", "D",
    "out_proj", "norm_weight", "norm_bias",
)  # fmt: skip


class Options(NamedTuple):
    """What an operator is told beside its tensors; see `fused_layer`."""

    eps: float
    residual: bool
    last: bool
    reverse: bool
    drop_rate: float = 0.0
    drop_seed: int = 0


@torch.library.custom_op("ftmamba::mamba_layer", mutates_args=(), device_types="cpu")
def mamba_layer(  # noqa: PLR0913 - an operator takes every tensor by itself
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    residual: bool,
    last: bool,
    reverse: bool,
    drop_rate: float,
    drop_seed: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """Return the layer's output (B, L, D), or (B, D) of the last token, and states to keep."""
    tensors = (
        x, in_proj, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D, out_proj,
        norm_weight, norm_bias,
    )  # fmt: skip
    options = Options(eps, residual, last, reverse, drop_rate, drop_seed)
    return _forward(tensors, options, keep_states=keep_states)


@mamba_layer.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    x, A_log, options = inputs[0], inputs[7], Options(*inputs[len(_TENSORS) : -1])
    return _empty_outputs(x, A_log, last=options.last, keep_states=inputs[-1])


@torch.library.custom_op("ftmamba::mamba_layer_backward", mutates_args=(), device_types="cpu")
def mamba_layer_backward(  # noqa: PLR0913
    d_out: Tensor,
    states: Tensor,
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    residual: bool,
    last: bool,
    reverse: bool,
    drop_rate: float,
    drop_seed: int,
) -> list[Tensor]:
    """Return the gradients of the twelve tensors, an empty one where a tensor is None."""
    tensors = (
        x, in_proj, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D, out_proj,
        norm_weight, norm_bias,
    )  # fmt: skip
    if not x.numel():
        return [torch.zeros_like(t) if t is not None else x.new_empty(0) for t in tensors]
    gradients = _empty_gradients(tensors)
    call, _alive = _call(tensors, Options(eps, residual, last, reverse, drop_rate, drop_seed))
    d_out = d_out.contiguous()
    call.d_out, call.states = d_out.data_ptr(), states.data_ptr() or None
    for name, gradient in zip(_TENSORS, gradients, strict=True):
        setattr(call, f"d_{name}", gradient.data_ptr() or None)
    library().run("layer_backward", call)
    return gradients


@mamba_layer_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return _empty_gradients(inputs[2 : 2 + len(_TENSORS)])


def _forward(
    tensors: tuple[Tensor | None, ...], options: Options, *, keep_states: bool
) -> tuple[Tensor, Tensor]:
    call, _alive = _call(tensors, options)
    x, A_log = tensors[0], tensors[7]
    assert x is not None
    assert A_log is not None
    out, states = _empty_outputs(x, A_log, last=options.last, keep_states=keep_states)
    if out.numel():
        call.out, call.states = out.data_ptr(), states.data_ptr() or None
        library().run("layer_forward", call)
    return out, states


def _empty_outputs(
    x: Tensor, A_log: Tensor, *, last: bool, keep_states: bool
) -> tuple[Tensor, Tensor]:
    batch, length, hidden = x.shape
    shape = state_shape(batch, length, *A_log.shape) if keep_states else (0,)
    out = x.new_empty((batch, hidden) if last else (batch, length, hidden))
    return out, x.new_empty(shape)


def _empty_gradients(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    some = tensors[0]
    assert some is not None
    return [
        some.new_empty(tensor.shape) if tensor is not None else some.new_empty(0)
        for tensor in tensors
    ]


def _call(tensors: tuple[Tensor | None, ...], options: Options) -> tuple[LayerCall, list[Tensor]]:
    """Return the call and the tensors whose memory it points to."""
    named = dict(zip(_TENSORS, tensors, strict=True))
    sizes = check_layer(named, last=options.last)
    pointers, alive = as_pointers(named)
    elements = sizes["rows"] * sizes["length"] * sizes["inner"] * sizes["state"]
    threads = library().threads_for(elements)
    return LayerCall(**sizes, **options._asdict(), **pointers, threads=threads), alive


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: len(_TENSORS)], output[1])
    ctx.options = inputs[len(_TENSORS) : -1]


def _backward(ctx: Any, d_out: Tensor | None, _d_states: None) -> tuple[Any, ...]:
    *tensors, states = ctx.saved_tensors
    if d_out is None:
        return (None,) * (len(tensors) + len(ctx.options) + 1)
    gradients = mamba_layer_backward(d_out, states, *tensors, *ctx.options)
    given = (g if t is not None else None for t, g in zip(tensors, gradients, strict=True))
    return (*given, *(None,) * (len(ctx.options) + 1))


mamba_layer.register_autograd(_backward, setup_context=_keep_for_backward)
mamba_layer.register_autocast("cpu", torch.float32)


def fused_layer(
    hidden_BLD: Tensor,
    parameters: Any,
    norm: tuple[Tensor, Tensor | None, float] | None,
    *,
    residual: bool,
    last: bool,
    reverse: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Run a Mamba layer: [hidden +] dropout(mixer(norm(hidden))), in float32 whatever the type.

    Args:
        hidden_BLD: tokens, float32, bfloat16 or float16, on the CPU.
        parameters: `MambaParameters`.
        norm: weight, bias and eps of the LayerNorm ahead of the mixer, or None for none.
        residual: whether the input is added to the mixer's output.
        last: return only the last token's output.
        reverse: read the tokens from the last to the first; `last` is then the first token.
        dropout: its rate, in [0, 1); what is dropped comes from torch's generator.

    Returns:
        (B, L, D), or (B, D) where `last`, of hidden's type.

    Raises:
        RuntimeError: a tensor is not on the CPU.
        TypeError: a tensor is not of floating point, or float64.
        ValueError: shapes do not fit each other.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    tensors = [float32(tensor) for tensor in (hidden_BLD, *parameters, weight, bias)]
    seed = draw_seed() if dropout else 0
    options = Options(eps, residual, last, reverse, dropout, seed)
    out: Tensor
    kept = is_kept(*tensors)
    if kept or torch.compiler.is_compiling() or type(hidden_BLD) is not Tensor:
        out, _ = mamba_layer(*tensors, *options, kept)
    else:  # Without the dispatcher: a batch of one waits for it longer than for the kernel.
        out, _ = _forward(tuple(tensors), options, keep_states=False)
    return out if out.dtype is hidden_BLD.dtype else out.to(hidden_BLD.dtype)


def carried_layer(
    hidden_BLD: Tensor,
    parameters: Any,
    norm: tuple[Tensor, Tensor | None, float] | None,
    conv_BEJ: Tensor,
    state_BEN: Tensor,
    *,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a Mamba layer over tokens that follow others; no gradient passes.

    Args:
        hidden_BLD: tokens, one or more.
        parameters: `MambaParameters`.
        norm: see `fused_layer`.
        conv_BEJ: the newest inputs of the convolution, kernel - 1 of each channel, oldest first.
        state_BEN: state of the scan.
        residual: whether the input is added to the mixer's output.

    Returns:
        The outputs (B, L, D), of hidden's type, and what `conv_BEJ` and `state_BEN` are after
        these tokens, in float32.

    Raises:
        RuntimeError: a tensor is not on the CPU.
        TypeError: a tensor is not of floating point, or float64.
        ValueError: shapes do not fit each other.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    tensors = [float32(tensor) for tensor in (hidden_BLD, *parameters, weight, bias)]
    before = [float32(tensor) for tensor in (conv_BEJ, state_BEN)]
    call, _alive = _call(tuple(tensors), Options(eps, residual, False, False))
    batch, inner = call.rows, call.inner
    shapes = [(batch, inner, call.kernel - 1), (batch, inner, call.state)]
    if [tuple(tensor.shape) for tensor in (conv_BEJ, state_BEN)] != shapes:
        raise ValueError(
            f"the states of {batch} records must have shapes {shapes[0]} and {shapes[1]}, got "
            f"{tuple(conv_BEJ.shape)} and {tuple(state_BEN.shape)}"
        )
    kept, _alive_too = as_pointers(dict(zip(("conv_before", "state_before"), before, strict=True)))
    out = hidden_BLD.new_empty(hidden_BLD.shape, dtype=torch.float32)
    conv, state = (out.new_empty(shape) for shape in shapes)
    if not out.numel():
        return hidden_BLD, conv_BEJ.float(), state_BEN.float()
    # A kernel of one token keeps no inputs: nothing is read or written where `conv` points then.
    call.conv_before = kept["conv_before"] or kept["state_before"]
    call.conv_after = conv.data_ptr() or state.data_ptr()
    call.state_before, call.state_after = kept["state_before"], state.data_ptr()
    call.out = out.data_ptr()
    library().run("layer_forward", call)
    return out.to(hidden_BLD.dtype), conv, state
