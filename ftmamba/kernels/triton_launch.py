"""Launches the Triton scan: where it can run, how the work is cut, where the results go.

A program is one warp with a tile of channels of one record, and goes through its tokens in order;
or through one chunk of them, where records are long and few (`run_side_by_side`).

Shapes: B batch, L tokens, E channels, N numbers of state, J borders between chunks of tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 60  # tokens between two states that a forward pass keeps for the backward
SPAN = 6  # tokens that the backward holds in registers
# Programs are one warp each. A processor, as NVIDIA's GPUs have about a hundred, has four
# schedulers, and registers for so many warps of the backward.
FEW_WARPS_A_PROCESSOR = 2
FULL_WARPS_A_PROCESSOR = 12
REGISTERS = 168


def why_not() -> str | None:
    """Return None where Triton kernels can run on this machine, else the reason and the remedy."""
    try:
        from .triton_scan import INTERPRETED
    except ImportError as error:
        return f"the triton scan cannot run here: {error}, or model.set_scan('auto')"
    if torch.cuda.is_available() or INTERPRETED:
        return None
    return (
        "the triton scan cannot run here: it needs a GPU, and torch.cuda.is_available() is False; "
        "install torch for CUDA, or model.set_scan('auto')"
    )


def refuse_elsewhere(tensor: Tensor) -> None:
    """Raise RuntimeError, with the reason, where Triton cannot run on the tensor."""
    if reason := why_not():
        raise RuntimeError(reason)
    from .triton_scan import INTERPRETED

    if not tensor.is_cuda and not INTERPRETED:
        raise RuntimeError(
            f"the triton scan runs on CUDA tensors, got tensors on {tensor.device}; "
            "move model and inputs there with .to('cuda'), or model.set_scan('auto')"
        )


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def n_processors(device: torch.device) -> int:
    """Return the number of a GPU's processors; two stand for the interpreter's."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def n_groups(device: torch.device, n_tiles: int, n_items: int) -> int:
    """Return how many programs share a tile's items, so that together they fill the GPU once."""
    return max(1, min(n_items, n_processors(device) * FULL_WARPS_A_PROCESSOR // n_tiles))


def few_registers() -> dict[str, int]:
    """Return the option that limits the backward's registers; AMD's compiler has none."""
    return {} if torch.version.hip else {"maxnreg": REGISTERS}


def run_side_by_side(device: torch.device, n_programs: int, n_chunks: int) -> bool:
    """Decide whether the chunks of a record run side by side.

    They compute every decay once more then: worth it where the programs that take whole records
    leave more than half of the GPU's schedulers idle.
    """
    return n_chunks > 2 and n_programs < FEW_WARPS_A_PROCESSOR * n_processors(device)


class ScanTensors(NamedTuple):
    """What a scan reads, or the gradients of it.

    Where the gate is given, of the shape of y, the scan is the mixer's: dt comes before its bias
    and softplus, and y = (C h + D u) SiLU(gate).
    """

    u: Tensor  # (B, L, E)
    dt: Tensor  # (B, L, E)
    A: Tensor  # (N, E), float32
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N), or (B, N): the last token's, whose output alone is wanted
    D: Tensor | None = None  # (E,)
    bias: Tensor | None = None  # (E,)
    gate: Tensor | None = None  # (B, L, E) or (B, E)


def n_borders(length: int) -> int:
    """Return the number of borders between the chunks of a record."""
    return 0 if length == 0 else (length - 1) // CHUNK


def empty_outputs(tensors: ScanTensors) -> Tensor:
    """Return room for y."""
    B, L, E = tensors.u.shape
    return tensors.u.new_empty((B, E) if tensors.C.dim() == 2 else (B, L, E))


def empty_states(tensors: ScanTensors, *, kept: bool) -> Tensor:
    """Return room for the states at the borders between chunks, or for none."""
    B, L, E = tensors.u.shape
    J, N = n_borders(L) if kept else 0, tensors.A.shape[0]
    return tensors.A.new_empty((B, J, N, E))


def dense(tensor: Tensor) -> Tensor:
    """Return (B, L, F) or (B, F) with tokens one distance apart throughout, copied if need be."""
    if tensor.dim() == 2:
        return tensor.contiguous()
    n_rows, length, _ = tensor.shape
    even = n_rows == 1 or length == 1 or tensor.stride(0) == length * tensor.stride(1)
    return tensor if even and tensor.stride(2) == 1 else tensor.contiguous()


def token_stride(tensor: Tensor) -> int:
    """Return the distance of two tokens of a `dense` tensor, or of two rows of a matrix."""
    return tensor.stride(0 if tensor.dim() == 2 or tensor.shape[1] == 1 else 1)


@dataclass(frozen=True)
class Plan:
    """A scan of dense tensors, and how it is cut."""

    tensors: ScanTensors
    reverse: bool

    @property
    def last(self) -> bool:
        return self.tensors.C.dim() == 2

    @property
    def n_chunks(self) -> int:
        return n_borders(self.tensors.u.shape[1]) + 1

    @property
    def tile(self) -> int:
        """Channels of a program: two a thread where the state leaves the registers for it."""
        n_states, n_channels = self.tensors.A.shape
        return 64 if n_states <= 16 and n_channels > 32 else 32

    @property
    def n_tiles(self) -> int:
        return -(-self.tensors.A.shape[1] // self.tile)

    @property
    def side_by_side(self) -> bool:
        n_programs = self.tensors.u.shape[0] * self.n_tiles
        return run_side_by_side(self.tensors.u.device, n_programs, self.n_chunks)

    def constants(self) -> dict[str, Any]:
        """Return what all kernels are compiled for."""
        N, E = self.tensors.A.shape
        return {"E": E, "N": N, "TILE": self.tile, "num_warps": 1, "enable_fp_fusion": True}

    def token_constants(self) -> dict[str, Any]:
        """Return what the kernels that go through tokens are compiled for."""
        u, dt, _, B, C, _, _, gate = self.tensors
        strides = [token_stride(tensor) for tensor in (u, dt, B, C)]
        return self.constants() | {
            "STRIDES": (*strides, 0 if gate is None else token_stride(gate)),
            "CHUNK": CHUNK,
            "LAST": self.last,
            "REVERSE": self.reverse,
        }


def plan(tensors: ScanTensors, *, reverse: bool) -> Plan:
    """Return the plan of a scan."""
    of_tokens = {name: getattr(tensors, name) for name in ("u", "dt", "B", "C", "gate")}
    changed = {name: dense(x) for name, x in of_tokens.items() if x is not None}
    return Plan(tensors._replace(**changed), reverse)


def run_forward(tensors: ScanTensors, *, reverse: bool, keep_states: bool) -> tuple[Tensor, Tensor]:
    """Return y, and the states at the borders between chunks, or none of them."""
    refuse_elsewhere(tensors.u)
    from .triton_scan import scan_forward

    y, states_BJNE = empty_outputs(tensors), empty_states(tensors, kept=keep_states)
    B, L, _ = tensors.u.shape
    if L == 0 or y.numel() == 0:
        return y.zero_(), states_BJNE
    cut = plan(tensors, reverse=reverse)
    borders_BJNE, chunks, skipped = states_BJNE, 1, 0
    states = "kept" if keep_states else "none"
    with device_of(y):
        if cut.side_by_side:
            states, borders_BJNE = "given", empty_states(tensors, kept=True)
            join_borders(cut, None, borders_BJNE)
            chunks, skipped = (1, cut.n_chunks - 1) if cut.last else (cut.n_chunks, 0)
        scan_forward[(B * chunks * cut.n_tiles,)](
            cut.tensors, y, borders_BJNE, L, cut.n_chunks, chunks, skipped, STATES=states,
            **cut.token_constants(),
        )  # fmt: skip
    return y, borders_BJNE if keep_states else states_BJNE


def join_borders(cut: Plan, dy: Tensor | None, states_BJNE: Tensor) -> None:
    """Write the state at every border, all chunks at once; the adjoint where dy is given."""
    from .triton_scan import join_chunks, run_chunks

    B, J, N, E = states_BJNE.shape
    sums_BJE = states_BJNE.new_empty((B, J, E))
    run_chunks[(B * J * cut.n_tiles,)](
        cut.tensors, dy, states_BJNE, sums_BJE, cut.tensors.u.shape[1], cut.n_chunks,
        **cut.token_constants(),
    )  # fmt: skip
    join_chunks[(B * N * cut.n_tiles,)](
        states_BJNE, sums_BJE, cut.tensors.A, J, ADJOINT=dy is not None, **cut.constants()
    )


def run_backward(
    tensors: ScanTensors, dy: Tensor, states_BJNE: Tensor, d_gate: Tensor | None, *, reverse: bool
) -> ScanTensors:
    """Return the gradients; the gate's is written into `d_gate`, a tensor or a view of one.

    Those of A, B, C, D and the bias are float32.
    """
    refuse_elsewhere(tensors.u)
    from .triton_backward import scan_backward

    B, L, _ = tensors.u.shape
    dy = dy.contiguous()
    if L == 0 or dy.numel() == 0:
        return no_gradients(tensors, d_gate)
    cut = plan(tensors, reverse=reverse)
    chunks = cut.n_chunks if cut.side_by_side else 1
    P, n_spans = n_groups(dy.device, cut.n_tiles, B * chunks), -(-min(L, CHUNK) // SPAN)
    parts = empty_gradients(cut, P, d_gate)
    scratch = cut.tensors.A.new_empty((P * cut.n_tiles, n_spans + 1, len(tensors.A), cut.tile))
    adjoints_BJNE = states_BJNE
    with device_of(dy):
        if cut.side_by_side:
            adjoints_BJNE = empty_states(tensors, kept=True)
            join_borders(cut, dy, adjoints_BJNE)
        scan_backward[(P * cut.n_tiles,)](
            cut.tensors, parts, dy, states_BJNE, adjoints_BJNE, scratch, B, L, cut.n_chunks,
            chunks, n_spans, D_GATE_STRIDE=0 if d_gate is None else token_stride(d_gate),
            SPAN=SPAN, **cut.token_constants(), **few_registers(),
        )  # fmt: skip
    summed = {name: getattr(parts, name) for name in ("A", "B", "C", "D", "bias")}
    return parts._replace(**{name: x.sum(0) for name, x in summed.items() if x is not None})


def empty_gradients(cut: Plan, n_parts: int, d_gate: Tensor | None) -> ScanTensors:
    """Return room for gradients: of B and C a part for each tile, of A, D and the bias n_parts."""
    u, dt, A, B, C, D, bias, _ = cut.tensors
    return ScanTensors(
        u.new_empty(u.shape), dt.new_empty(dt.shape), A.new_zeros((n_parts, *A.shape)),
        A.new_empty((cut.n_tiles, *B.shape)), A.new_empty((cut.n_tiles, *C.shape)), None if D is
        None else A.new_empty((n_parts, *D.shape)), None if bias is None else A.new_empty((n_parts,
        *bias.shape)), d_gate,
    )  # fmt: skip


def no_gradients(tensors: ScanTensors, d_gate: Tensor | None) -> ScanTensors:
    """Return the gradients of a scan without rows or tokens: zeros."""
    if d_gate is not None:
        d_gate.zero_()
    zeros = [torch.zeros_like(x) for x in tensors[:7] if x is not None]
    return ScanTensors(*zeros)._replace(gate=d_gate)
