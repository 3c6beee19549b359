"""The fused Mamba layer on CPUs: `torch.ops.ftmamba.mamba_layer`, with its gradient.

One call does norm, in_proj, convolution, SiLU, x_proj, dt_proj, softplus, scan, skip, gate,
out_proj, dropout and the residual sum, a block of tokens at a time in the cache. The backward pass
computes the insides again from the layer's input, so nothing but the input and, beyond 32 tokens,
one state a chunk is kept.

Shapes: B batch, L tokens, D hidden, E inner channels, N state, J tokens that the convolution keeps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .elementwise import draw_seed
from .library import (
    LayerCall,
    MambaParameters,
    Norm,
    as_pointers,
    check_shapes,
    float32,
    is_kept,
    library,
    state_shape,
)

WIDEST_CONV = 32
"""Tokens of the widest convolution that the kernel takes."""


class Options(NamedTuple):
    """What shapes a call beside its tensors; see `fused_layer`."""

    eps: float
    residual: bool
    last: bool
    reverse: bool
    drop_rate: float = 0.0
    drop_seed: int = 0


# As `LayerCall` names them, in the order of the operator's list; an absent one is empty there.
_TENSORS = ("x", *MambaParameters._fields, "norm_weight", "norm_bias")
_MAY_BE_ABSENT = ("conv_bias", "norm_weight", "norm_bias")


@torch.library.custom_op("ftmamba::mamba_layer", mutates_args=(), device_types="cpu")
def mamba_layer(  # noqa: PLR0913 - an operator takes plain values
    tensors: list[Tensor], eps: float, residual: bool, last: bool, reverse: bool, drop_rate: float,
    drop_seed: int, keep_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the layer's output (B, L, D), or (B, D) of the last token, and states to keep."""
    options = Options(eps, residual, last, reverse, drop_rate, drop_seed)
    return _forward(tensors, options, keep_states=keep_states)


@mamba_layer.register_fake
def _(tensors: list[Tensor], *others: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(tensors, last=others[2], keep_states=others[-1])


@torch.library.custom_op("ftmamba::mamba_layer_backward", mutates_args=(), device_types="cpu")
def mamba_layer_backward(  # noqa: PLR0913 - likewise
    d_out: Tensor, states: Tensor, tensors: list[Tensor], eps: float, residual: bool, last: bool,
    reverse: bool, drop_rate: float, drop_seed: int,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the twelve tensors."""
    if not tensors[0].numel():
        return [torch.zeros_like(tensor) for tensor in tensors]
    gradients = [tensor.new_empty(tensor.shape) for tensor in tensors]
    call, _alive = _call(tensors, Options(eps, residual, last, reverse, drop_rate, drop_seed))
    d_out = d_out.contiguous()
    call.d_out, call.states = d_out.data_ptr(), states.data_ptr() or None
    for name, gradient in zip(_TENSORS, gradients, strict=True):
        setattr(call, f"d_{name}", gradient.data_ptr() or None)
    library().run("layer_backward", call)
    return gradients


@mamba_layer_backward.register_fake
def _(_d_out: Tensor, _states: Tensor, tensors: list[Tensor], *_: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _forward(
    tensors: list[Tensor], options: Options, *, keep_states: bool
) -> tuple[Tensor, Tensor]:
    call, _alive = _call(tensors, options)
    out, states = _empty_outputs(tensors, last=options.last, keep_states=keep_states)
    if out.numel():
        call.out, call.states = out.data_ptr(), states.data_ptr() or None
        library().run("layer_forward", call)
    return out, states


def _empty_outputs(
    tensors: list[Tensor], *, last: bool, keep_states: bool
) -> tuple[Tensor, Tensor]:
    x, A_log = tensors[0], tensors[_TENSORS.index("A_log")]
    batch, length, hidden = x.shape
    shape = state_shape(batch, length, *A_log.shape) if keep_states else (0,)
    return x.new_empty((batch, hidden) if last else x.shape), x.new_empty(shape)


def _call(tensors: list[Tensor], options: Options) -> tuple[Any, list[Tensor]]:
    """Return the call and the tensors whose memory it points to.

    Raises:
        ValueError: shapes do not fit each other, or there is no last token.
    """
    named: dict[str, Tensor | None] = dict(zip(_TENSORS, tensors, strict=True))
    for name in _MAY_BE_ABSENT:
        if named[name].numel() == 0:  # type: ignore[union-attr]
            named[name] = None
    x, A_log, dt_weight = (tensors[_TENSORS.index(name)] for name in ("x", "A_log", "dt_weight"))
    conv_weight = tensors[_TENSORS.index("conv_weight")]
    if (x.ndim, A_log.ndim, dt_weight.ndim, conv_weight.ndim) != (3, 2, 2, 3):
        raise ValueError(
            "a layer takes x (batch, tokens, hidden), A_log (inner, state), dt_weight (inner, "
            f"rank) and conv_weight (inner, 1, kernel), got x {tuple(x.shape)}, A_log "
            f"{tuple(A_log.shape)}, dt_weight {tuple(dt_weight.shape)} and conv_weight "
            f"{tuple(conv_weight.shape)}"
        )
    batch, length, hidden = x.shape
    (inner, state), rank, kernel = A_log.shape, dt_weight.shape[1], conv_weight.shape[2]
    check_shapes(named, {
        "in_proj": (2 * inner, hidden), "conv_weight": (inner, 1, kernel), "conv_bias": (inner,),
        "x_proj": (rank + 2 * state, inner), "dt_weight": (inner, rank), "dt_bias": (inner,),
        "D": (inner,), "out_proj": (hidden, inner), "norm_weight": (hidden,),
        "norm_bias": (hidden,),
    })  # fmt: skip
    if not 1 <= kernel <= WIDEST_CONV:
        raise ValueError(
            f"the compiled layer takes a convolution of 1 to {WIDEST_CONV} tokens, got {kernel}; "
            "choose set_scan('sequential')"
        )
    if options.last and not length:
        raise ValueError("the last token's output needs at least one token, got rows of none")
    pointers, alive = as_pointers(named)
    call = LayerCall(
        rows=batch, length=length, hidden=hidden, inner=inner, state=state, rank=rank,
        kernel=kernel, threads=library().threads_for(batch * length * inner * state),
        **options._asdict(), **pointers,
    )  # fmt: skip
    return call, alive


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, *ctx.options, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, d_out: Tensor | None, _d_states: None) -> tuple[Any, ...]:
    *tensors, states = ctx.saved_tensors
    gradients: list[Any] = [None] * len(tensors)
    if d_out is not None:
        gradients = mamba_layer_backward(d_out, states, tensors, *ctx.options)
    return (gradients, *[None] * (len(ctx.options) + 1))


mamba_layer.register_autograd(_backward, setup_context=_keep_for_backward)


def _listed(hidden_BLD: Tensor, parameters: MambaParameters, norm: Norm | None) -> list[Tensor]:
    """Return the operator's tensors, in float32."""
    weight_D, bias_D, _ = norm or (None, None, 0.0)
    tensors = [float32(tensor) for tensor in (hidden_BLD, *parameters, weight_D, bias_D)]
    return [hidden_BLD.new_empty(0, dtype=torch.float32) if x is None else x for x in tensors]


def fused_layer(
    hidden_BLD: Tensor,
    parameters: MambaParameters,
    norm: Norm | None,
    *,
    residual: bool,
    last: bool,
    reverse: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Run a Mamba layer: [hidden +] dropout(mixer(norm(hidden))), in float32 whatever the type.

    Args:
        hidden_BLD: tokens, float32, bfloat16 or float16, on the CPU.
        parameters: of the mixer.
        norm: of the LayerNorm ahead of the mixer, or None for none.
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
    tensors = _listed(hidden_BLD, parameters, norm)
    seed = draw_seed() if dropout else 0
    eps = 0.0 if norm is None else norm[2]
    options = Options(eps, residual, last, reverse, dropout, seed)
    out: Tensor
    kept = is_kept(*tensors)
    if kept or torch.compiler.is_compiling() or type(hidden_BLD) is not Tensor:
        out, _ = mamba_layer(tensors, *options, kept)
    else:  # Without the dispatcher: a batch of one waits for it longer than for the kernel.
        out, _ = _forward(tensors, options, keep_states=False)
    return out if out.dtype is hidden_BLD.dtype else out.to(hidden_BLD.dtype)


def carried_layer(
    hidden_BLD: Tensor,
    parameters: MambaParameters,
    norm: Norm | None,
    conv_BEJ: Tensor,
    state_BEN: Tensor,
    *,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a Mamba layer over tokens that follow others; no gradient passes.

    Args:
        hidden_BLD: tokens, one or more.
        parameters: of the mixer.
        norm: see `fused_layer`.
        conv_BEJ: the newest inputs of the convolution, oldest first.
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
    tensors = _listed(hidden_BLD, parameters, norm)
    eps = 0.0 if norm is None else norm[2]
    call, _alive = _call(tensors, Options(eps, residual, last=False, reverse=False))
    states: dict[str, Tensor | None] = {
        "conv_before": float32(conv_BEJ), "state_before": float32(state_BEN),
    }  # fmt: skip
    shapes = [(call.rows, call.inner, call.kernel - 1), (call.rows, call.inner, call.state)]
    check_shapes(states, dict(zip(states, shapes, strict=True)))
    kept, _alive_too = as_pointers(states)
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
