"""Lets a network run on kernels: `attach` gives its modules faster forwards of the same values.

A network calls it through the entry point `ftmamba.kernels` when it is made and from `set_scan`.
The forwards are bound to instances, so that the classes, which a checkpoint may bring as code of
its own, keep the definition; what a kernel does not take runs there. `implementation` decides,
module by module and call by call, what runs.

Shapes: B batch, L tokens, D hidden, E inner channels, N state.
"""

import functools
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from . import elementwise
from .layer import WIDEST_CONV, carried_layer, fused_layer
from .library import KernelLibrary, MambaParameters, Norm, installed_library
from .linears import apply_linear, apply_linear_in_chunks, is_untouched
from .scan import cpu_scan
from .ssd_row_blocks import SSDParameters, can_mix_in_row_blocks, mix_in_row_blocks

logger = logging.get_logger(__name__)

CONTRACT = 1
"""Version of the methods and attributes of the network's modules that this file relies on."""
PLAIN = ("sequential", "reference")
"""Scans that run as the network's own code has them."""
KERNELS = ("cpu", "triton")


class Choice(NamedTuple):
    """What a module runs on, found out once: a compiled graph must not look for libraries.

    Attributes:
        scan: what was asked for.
        on_cpu: name of the implementation for tensors on a CPU, never `auto`, here and below.
        on_cuda: for tensors on a GPU.
        elsewhere: for other devices, and for float64.
    """

    scan: str
    on_cpu: str
    on_cuda: str
    elsewhere: str


def attach(network: nn.Module, scan: str) -> None:
    """Choose what the modules of a network run on.

    Args:
        network: with layers of the class `FTMambaLayer` of any copy of the model's code.
        scan: `auto`, the fastest for each tensor; `sequential` or `reference`, nothing but plain
            torch; or the implementation of the selective scan: `cpu` or `triton`.

    Raises:
        ValueError: no implementation has that name, or no layer has a selective scan.
        RuntimeError: it cannot run here; says why and how to get it.
    """
    if scan not in ("auto", *PLAIN, *KERNELS):
        known = ", ".join(("auto", *PLAIN, *KERNELS))
        raise ValueError(f"scan must be one of {known}, got {scan!r}")
    layers = [module for module in network.modules() if _is(module, "FTMambaLayer")]
    mixers = {type(layer.mixer).__name__ for layer in layers}
    if scan in (*KERNELS, "reference") and layers and "MambaMixer" not in mixers:
        raise ValueError(
            f"scan {scan!r} has no effect here: the layers' mixer is {', '.join(sorted(mixers))}, "
            "without a selective scan; choose 'auto' or 'sequential'"
        )
    choice = _choice(scan, scans="MambaMixer" in mixers)
    for layer in layers:
        if getattr(layer, "kernel_contract", None) == CONTRACT:
            _attach_layer(layer, choice)
    tower: Any
    for tower in network.modules():
        if _is(tower, "TowerNetwork"):
            _bind(tower, FastTower, choice)
            if isinstance(dropout := getattr(tower.tokenizer, "dropout", None), nn.Module):
                _bind(dropout, FastDropout, choice)


@functools.cache
def missing(scan: str) -> str | None:
    """Return why an implementation cannot run on this machine, with the remedy, or None."""
    if scan == "cpu":
        found = installed_library()
        return (
            None if isinstance(found, KernelLibrary) else f"the cpu scan cannot run here: {found}"
        )
    if scan != "triton":
        return None
    from .triton_launch import why_not

    return why_not()


def _choice(scan: str, *, scans: bool) -> Choice:
    """Return what runs for a name; warn where `auto` finds no kernel for a scan."""
    if scan != "auto":
        if scan in KERNELS and (reason := missing(scan)) is not None:
            raise RuntimeError(reason)
        return Choice(scan, scan, scan, scan)
    # Importing Triton takes as long as loading a checkpoint.
    on_cuda = missing("triton") if torch.cuda.is_available() else "no GPU"
    for reason, device in ((missing("cpu"), "CPU"), (on_cuda, "GPU")):
        if scans and reason not in (None, "no GPU"):
            logger.warning_once(f"The scan runs in plain torch, slower on a {device}: {reason}.")
    return Choice(
        scan,
        on_cpu="sequential" if missing("cpu") else "cpu",
        on_cuda="sequential" if on_cuda else "triton",
        elsewhere="sequential",
    )


def implementation(module: Any, x: Tensor) -> str:
    """Return what a module runs on such a tensor: a name that `attach` takes, never `auto`."""
    choice: Choice = module.kernels
    if x.dtype is torch.float64:
        return choice.elsewhere
    return choice.on_cpu if x.is_cpu else choice.on_cuda if x.is_cuda else choice.elsewhere


def _is(module: nn.Module, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(module).__mro__)


def _attach_layer(layer: Any, choice: Choice) -> None:
    _bind(layer, FastLayer, choice)
    _bind(layer.dropout, FastDropout, choice)
    for part in (layer.mixer, layer.reverse_mixer, layer.feed_forward):
        fast = None if part is None else FAST.get(type(part).__name__)
        if fast is not None:
            _bind(part, fast, choice)
    if layer.feed_forward is not None:
        _bind(layer.feed_forward.dropout, FastDropout, choice)


def _bind(module: Any, methods: type, choice: Choice) -> None:
    """Bind the functions of a class to an instance; for a plain scan take them off again."""
    module.kernels = choice
    for name, function in vars(methods).items():
        if not isinstance(function, FunctionType):
            continue
        if choice.scan not in PLAIN:
            # Under its own name, so that a pickled or copied module finds it, or the plain one.
            setattr(module, name, MethodType(function, module))
        elif getattr(vars(module).get(name), "__func__", None) is function:
            delattr(module, name)


def _runs_on_cpu(module: Any, x: Tensor) -> bool:
    """Return whether the C kernels beside the scan take such a tensor."""
    narrow = x.is_cpu and x.dtype in (torch.float32, torch.bfloat16)
    return narrow and module.kernels.on_cpu == "cpu" and not torch.compiler.is_compiling()


def _fused(mixer: Any, x: Tensor, gaps_BL: Tensor | None, rate: float = 0.0) -> Any:
    """Return what runs a whole Mamba layer, or None where something must run by itself."""
    if type(mixer).__name__ != "MambaMixer" or not _is_whole(mixer, gaps_BL):
        return None
    name = implementation(mixer, x)
    if name == "cpu" and not (rate and torch.compiler.is_compiling()):
        return functools.partial(fused_layer, dropout=rate)
    if name == "triton" and not rate:
        from .triton_layer import triton_layer

        return triton_layer
    return None


def _is_whole(mixer: Any, gaps_BL: Tensor | None) -> bool:
    """Return whether a kernel computes the mixer: no gaps, and no part replaced or observed."""
    if gaps_BL is not None and mixer.gap_weight is not None:
        return False
    parts = mixer._modules  # noqa: SLF001 - a record of one token feels each look-up
    conv = parts["conv1d"]
    narrow = conv.kernel_size[0] <= WIDEST_CONV and is_untouched(conv, nn.Conv1d)
    linears = ("in_proj", "x_proj", "dt_proj", "out_proj")
    return narrow and all(is_untouched(parts[name], nn.Linear) for name in linears)


def _parameters(mixer: Any) -> MambaParameters:
    parts, own = mixer._modules, mixer._parameters  # noqa: SLF001 - as above
    conv, dt = parts["conv1d"]._parameters, parts["dt_proj"]._parameters  # noqa: SLF001
    try:
        return MambaParameters(
            parts["in_proj"]._parameters["weight"], conv["weight"], conv["bias"],  # noqa: SLF001
            parts["x_proj"]._parameters["weight"], dt["weight"], dt["bias"], own["A_log"],  # noqa: SLF001
            own["D"], parts["out_proj"]._parameters["weight"],  # noqa: SLF001
        )  # fmt: skip
    except KeyError:  # FSDP keeps them elsewhere.
        return MambaParameters(
            mixer.in_proj.weight, mixer.conv1d.weight, mixer.conv1d.bias, mixer.x_proj.weight,
            mixer.dt_proj.weight, mixer.dt_proj.bias, mixer.A_log, mixer.D, mixer.out_proj.weight,
        )  # fmt: skip


def _fuses_with_norm(layer: Any) -> bool:
    norm = layer.mixer_norm
    kind = nn.LayerNorm if isinstance(norm, nn.LayerNorm) else nn.Identity
    before = layer.norm_position == "pre" and layer.reverse_mixer is None
    return before and is_untouched(norm, kind) and is_untouched(layer.dropout, nn.Dropout)


def _norm_weights(layer: Any) -> Norm | None:
    norm = layer.mixer_norm
    return (norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else None


class FastLayer:
    """Methods of `FTMambaLayer`."""

    def forward(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        if (fused_BLD := _layer_at_once(self, hidden_BLD, gaps_BL, last=False)) is not None:
            return self.feed(fused_BLD)
        backward = self.reverse_mixer
        if backward is None or (run := _fused(backward, hidden_BLD, None)) is None:
            return type(self).forward(self, hidden_BLD, gaps_BL)
        normed_BLD = self.normed(hidden_BLD)
        reversed_BLD = run(
            normed_BLD, _parameters(backward), None, residual=False, last=False, reverse=True
        )
        mixed_BLD = self.mixer(normed_BLD, gaps_BL) + reversed_BLD
        return self.finish(hidden_BLD, mixed_BLD)

    def forward_last(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        if (fused_BD := _layer_at_once(self, hidden_BLD, gaps_BL, last=True)) is not None:
            return self.feed(fused_BD)
        return type(self).forward_last(self, hidden_BLD, gaps_BL)

    def advance(self: Any, hidden_BLD: Tensor, state: Any, part: Any) -> tuple[Tensor, Any]:
        drops = self.training and self.dropout.p > 0
        carries = part.lengths is None and not torch.is_grad_enabled() and not drops
        if carries and type(self.mixer).__name__ == "MambaMixer" and _fuses_with_norm(self):
            on_cpu = implementation(self.mixer, hidden_BLD) == "cpu"
            if on_cpu and _is_whole(self.mixer, part.gaps):
                norm, parameters = _norm_weights(self), _parameters(self.mixer)
                out_BLD, conv, scan = carried_layer(
                    hidden_BLD, parameters, norm, *state, residual=self.residual
                )
                return self.feed(out_BLD), type(state)(conv, scan)
        return type(self).advance(self, hidden_BLD, state, part)

    def joined(self: Any, hidden: Tensor | None, added: Tensor, norm: nn.Module) -> Tensor:
        rate = self.dropout.p if self.training else 0.0
        fits = hidden is not None and hidden.dtype == torch.float32 and 0 < rate < 1
        if not fits or not is_untouched(self.dropout, nn.Dropout):
            return type(self).joined(self, hidden, added, norm)
        added = norm(added) if self.norm_position == "post" else added
        if hidden.shape != added.shape or not _runs_on_cpu(self, added):  # type: ignore[union-attr]
            total: Tensor = hidden + self.dropout(added)
        else:
            total = elementwise.dropout(added, rate, hidden)
        return norm(total) if self.norm_position == "sum" else total


def _layer_at_once(
    layer: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None, *, last: bool
) -> Tensor | None:
    """Return mixer, norm and sum from one fused call, or None where it takes several."""
    if type(layer.mixer).__name__ != "MambaMixer" or not _fuses_with_norm(layer):
        return None
    rate = layer.dropout.p if layer.training else 0.0
    if (run := _fused(layer.mixer, hidden_BLD, gaps_BL, rate)) is None:
        return None
    fused: Tensor = run(
        hidden_BLD, _parameters(layer.mixer), _norm_weights(layer),
        residual=layer.residual, last=last, reverse=False,
    )  # fmt: skip
    return fused


def _mixer_at_once(
    mixer: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None, *, last: bool
) -> Tensor | None:
    """Return what a mixer alone makes of tokens from one fused call, or None."""
    if (run := _fused(mixer, hidden_BLD, gaps_BL)) is None:
        return None
    return run(hidden_BLD, _parameters(mixer), None, residual=False, last=last, reverse=False)


class FastMamba:
    """Methods of `MambaMixer`."""

    def forward(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        mixed = _mixer_at_once(self, hidden_BLD, gaps_BL, last=False)
        return type(self).forward(self, hidden_BLD, gaps_BL) if mixed is None else mixed

    def forward_last(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        if (mixed := _mixer_at_once(self, hidden_BLD, gaps_BL, last=True)) is not None:
            return mixed
        if implementation(self, hidden_BLD) in SCANS:
            return self.forward(hidden_BLD, gaps_BL)[:, -1]
        return type(self).forward_last(self, hidden_BLD, gaps_BL)

    def scan(self: Any, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run as the network's `selective_scan`; the state after it is left out."""
        *tensors, state = inputs
        u = tensors[0]
        assert u is not None
        run = SCANS.get(implementation(self, u)) if u.numel() and state is None else None
        if run is None:
            return type(self).scan(self, *inputs)
        return run(*tensors), None

    def scan_name(self: Any) -> str:
        """Return the name of the scan on the mixer's device."""
        return implementation(self, self.D)


def _triton_scan(*tensors: Tensor) -> Tensor:
    from .triton_layer import triton_scan

    return triton_scan(*tensors)


SCANS: dict[str, Callable[..., Tensor]] = {"cpu": cpu_scan, "triton": _triton_scan}


class FastSSD:
    """Methods of `SSDMixer`: on a CPU the whole mixer is one autograd node."""

    def forward(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        if not _mixes_in_row_blocks(self, hidden_BLD, gaps_BL):
            return type(self).forward(self, hidden_BLD, gaps_BL)
        return mix_in_row_blocks(hidden_BLD, _ssd_parameters(self), self.norm.eps, last=False)

    def forward_last(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        if not _mixes_in_row_blocks(self, hidden_BLD, gaps_BL):
            return _last_of_ssd(self, hidden_BLD, gaps_BL)
        mixed = mix_in_row_blocks(hidden_BLD, _ssd_parameters(self), self.norm.eps, last=True)
        return mixed[:, 0]

    def advance(self: Any, hidden_BLD: Tensor, state: Any, part: Any) -> tuple[Tensor, Any]:
        """Read one token of every row with few and small steps, without gradients."""
        one = hidden_BLD.shape[1] == 1 and part.lengths is None and not torch.is_grad_enabled()
        if not (one and is_untouched(self.conv1d, nn.Conv1d)) or torch.compiler.is_compiling():
            return type(self).advance(self, hidden_BLD, state, part)
        gate, xBC, raw = self.in_proj(hidden_BLD[:, 0]).split(self.splits, -1)
        window = torch.cat([state.conv.to(xBC.dtype), xBC[..., None]], 2)
        inputs, taps = window.unbind(2), self.conv1d.weight[:, 0].unbind(1)
        total = torch.addcmul(self.conv1d.bias, inputs[0], taps[0])
        for x, tap in zip(inputs[1:], taps[1:], strict=True):
            total.addcmul_(x, tap)
        u, B, C = F.silu(total, inplace=True).to(state.scan.dtype).split(self.xBC_splits, -1)
        dt = F.softplus(raw + self.dt_bias)
        if part.gaps is not None and self.gap_weight is not None:
            dt = dt * torch.exp(part.gaps.to(dt.dtype) * self.gap_weight)
        decay = torch.exp(-dt * self.A_log.exp())[..., None]
        by_head = (len(u), self.n_heads, -1)
        u = u.view(by_head)
        dtu = (dt[..., None] * u).view(len(u), -1, 1)
        scan = (decay * state.scan.reshape(by_head)).view(state.scan.shape)
        scan.addcmul_(dtu, B[:, None])
        y = torch.bmm(C[:, None], scan.mT).view(by_head)
        y = torch.addcmul(y, self.D[:, None], u).flatten(1)
        mixed = self.out_proj(self.norm(y.to(gate.dtype), gate))
        return mixed[:, None], type(state)(window[..., 1:], scan)


def _last_of_ssd(mixer: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None) -> Tensor:
    """Return the last mixed token (B, D) in closed form.

    With S_t the sum of dt after token t, y = sum_t (C . B_t exp(S_t A)) dt_t u_t.
    """
    part = sys.modules[type(mixer).__module__].Part(None, gaps_BL)
    gate, (u, dt, B, C), _ = mixer.inputs(hidden_BLD, None, part)
    wide = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        A = -mixer.A_log.to(wide).exp()
        dt, B, C = (x.to(wide) for x in (dt, B, C[:, -1]))
        # Added up from the end: the difference of two sums would lose small ones. Lower exponents
        # than the plain scan's lowest would soon be denormal numbers, which are slow.
        after = F.pad(dt[:, 1:].flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
        weight = (after * A).clamp(min=-60.0).exp() * dt * (B @ C[..., None])
        y = torch.einsum("blh,blhp->bhp", weight, u.to(wide)).to(u.dtype)
    last: Tensor = mixer.output(y, u[:, -1], gate[:, -1])
    return last


def _mixes_in_row_blocks(mixer: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None) -> bool:
    if mixer.kernels.scan in PLAIN or (gaps_BL is not None and mixer.gap_weight is not None):
        return False
    parts = (mixer.in_proj, mixer.conv1d, mixer.norm, mixer.out_proj)
    norm_class = sys.modules[type(mixer).__module__].GatedRMSNorm
    kinds = (nn.Linear, nn.Conv1d, norm_class, nn.Linear)
    untouched = all(map(is_untouched, parts, kinds)) and mixer.conv1d.bias is not None
    return untouched and can_mix_in_row_blocks(hidden_BLD, mixer.in_proj.weight)


def _ssd_parameters(mixer: Any) -> SSDParameters:
    return SSDParameters(
        mixer.in_proj.weight, mixer.conv1d.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log,
        mixer.D, mixer.norm.weight, mixer.out_proj.weight,
    )  # fmt: skip


class FastAttention:
    """Methods of `AttentionMixer`: linear maps by the faster product."""

    def forward(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return _attend(self, hidden_BLD, hidden_BLD, causal=self.causal)

    def forward_last(self: Any, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return _attend(self, hidden_BLD[:, -1:], hidden_BLD, causal=False)[:, 0]


def _attend(mixer: Any, asking_BTD: Tensor, hidden_BLD: Tensor, *, causal: bool) -> Tensor:
    key_value = apply_linear_in_chunks(mixer.key_value, hidden_BLD, 2)
    query, key, value = (
        x.view(*x.shape[:2], mixer.n_heads, -1).transpose(1, 2)
        for x in (apply_linear(mixer.query, asking_BTD), *key_value)
    )
    rate = mixer.dropout if mixer.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=causal)
    return apply_linear(mixer.out_proj, mixed.transpose(1, 2).flatten(2))


class FastFeedForward:
    """Methods of `FeedForward`: faster products, GELU and dropout in one pass."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        if self.kind == "reglu":
            value, gate = apply_linear_in_chunks(self.up, hidden, 2)
            return apply_linear(self.down, self.dropout(value * torch.relu(gate)))
        up = apply_linear(self.up, hidden)
        if self.kind == "relu":
            return apply_linear(self.down, self.dropout(torch.relu(up)))
        drops = self.training and self.dropout.p < 1 and is_untouched(self.dropout, nn.Dropout)
        if drops and _runs_on_cpu(self, up):
            return apply_linear(self.down, elementwise.gelu_dropout(up, self.dropout.p))
        return apply_linear(self.down, self.dropout(F.gelu(up)))


class FastDropout:
    """Methods of `nn.Dropout`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1 or not _runs_on_cpu(self, x):
            return type(self).forward(self, x)
        # bfloat16, which autocast makes, goes back to what it is added to.
        return elementwise.dropout(x.float(), self.p)


class FastTower:
    """Methods of `TowerNetwork`."""

    def embedding_of(self: Any, pooled: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.config.normalize_embeddings:
            embeds: Tensor = self.head(self.norm(pooled))
            if (
                embeds.dtype == torch.float32
                and embeds.requires_grad
                and _runs_on_cpu(self, embeds)
            ):
                return elementwise.normalize(embeds)
            return F.normalize(embeds, dim=-1)
        return type(self).embedding_of(self, pooled)


FAST: dict[str, type] = {
    "MambaMixer": FastMamba,
    "SSDMixer": FastSSD,
    "AttentionMixer": FastAttention,
    "FeedForward": FastFeedForward,
}
