"""The shared library of the C kernels, and what every operator that calls it does with tensors.

The library is built with the package where a C compiler is at hand and left out where none is.
Nothing is looked up before the first use.

Shapes: B batch, L tokens, D hidden, E inner channels, N numbers of state, R rank of dt, K width of
the convolution.
"""

import ctypes
import functools
import re
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_THREADS = 256
"""As many threads as the library ever uses."""
LONGEST_CHUNK = 32
"""Tokens of a chunk at most; csrc/scan.h."""
NARROW = (torch.float32, torch.bfloat16, torch.float16)

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


def _call(name: str, sizes: str, options: dict[str, Any], tensors: str) -> type[Any]:
    """Return a struct of csrc/kernels.h: sizes, then options, then pointers to tensors."""
    fields: list[tuple[str, Any]] = [(size, _INT) for size in sizes.split()]
    fields += [*options.items(), *((tensor, _POINTER) for tensor in tensors.split())]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_DROPS = {"seed": ctypes.c_uint64, "rate": ctypes.c_double}
_EPS, _BIAS = {"eps": ctypes.c_double}, {"bias": ctypes.c_double}
LayerCall = _call(
    "Layer",
    "rows length hidden inner state rank kernel threads last reverse residual",
    {**_EPS, "drop_rate": ctypes.c_double, "drop_seed": ctypes.c_uint64},
    "x norm_weight norm_bias in_proj conv_weight conv_bias x_proj dt_weight dt_bias A_log D "
    "out_proj out states conv_before state_before conv_after state_after d_out d_x d_norm_weight "
    "d_norm_bias d_in_proj d_conv_weight d_conv_bias d_x_proj d_dt_weight d_dt_bias d_A_log d_D "
    "d_out_proj",
)
ScanCall = _call(
    "Scan",
    "rows length inner state threads",
    {},
    "u dt A B C y states d_y d_u d_dt d_A d_B d_C",
)
DropoutCall = _call("Dropout", "count threads narrow_x narrow_out", _DROPS, "x added out")
GeluCall = _call("Gelu", "count threads narrow", _DROPS, "x d_out out")
NormalizeCall = _call("Normalize", "rows size threads", _EPS, "x d_out out")
_LISTS = "listed lists list ahead kept"
ExponentialsCall = _call(
    "Exponentials", "rows columns threads stride narrow width", _BIAS, f"x largest sum {_LISTS}"
)
SoftmaxCall = _call(
    "Softmax",
    "rows columns threads size width",
    _BIAS,
    f"hidden items targets target largest sum {_LISTS} share d_hidden d_items",
)
CALLS = (
    LayerCall, ScanCall, DropoutCall, GeluCall, NormalizeCall, ExponentialsCall, SoftmaxCall,
)  # fmt: skip


class KernelLibrary:
    """The library's functions at one instruction set.

    Args:
        path: the shared library.
        variant: name of an instruction set, one of `variants()`; the fastest by default.

    Raises:
        OSError: the file is no library that this machine can load, or was built from other sources.
        ValueError: this processor does not run the variant.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self._library = ctypes.CDLL(str(path))
        count_bytes = getattr(self._library, "ftmamba_bytes_of_structs", lambda: 0)
        if count_bytes() != sum(ctypes.sizeof(call) for call in CALLS):
            raise OSError("it was built from other sources")
        self._library.ftmamba_variant.restype = ctypes.c_char_p
        names = self.variants()
        if variant is not None and variant not in names:
            raise ValueError(f"variant must be one of {', '.join(names)}, got {variant!r}")
        self.variant = variant or names[0]
        self._index = _INT(names.index(self.variant))
        entries = _openmp_entries()
        self.has_threads = entries is not None
        if entries is not None:
            self._library.ftmamba_set_runtime(*entries)

    def variants(self) -> list[str]:
        """Return the instruction sets that this processor runs, fastest first.

        The last, `emulated_tiles`, has nothing but `softmax` and is there for the tests.
        """
        names: list[str] = []
        while name := self._library.ftmamba_variant(_INT(len(names))):
            names.append(name.decode())
        return names

    def run(self, function: str, call: Any) -> None:
        """Call a function of csrc/library.c by its name after `ftmamba_`.

        Raises:
            MemoryError: the library could not get its working memory.
            ValueError: sizes it does not take.
        """
        code = getattr(self._library, f"ftmamba_{function}")(self._index, ctypes.byref(call))
        if code == 1:
            raise MemoryError(f"{function}: no working memory for {_sizes(call)}")
        if code:
            raise ValueError(f"{function} does not take these sizes: {_sizes(call)}")

    @property
    def has_tiles(self) -> bool:
        """Whether `softmax` is there: the processor multiplies tiles of bfloat16 (AMX)."""
        return self.variant in ("amx", "emulated_tiles")

    def threads_for(self, work: int, least: int = 100_000) -> int:
        """How many threads pay for `work`, each with at least so much; by default scan elements."""
        if not self.has_threads:
            return 1
        return max(1, min(torch.get_num_threads(), MOST_THREADS, work // least))


def _sizes(call: Any) -> dict[str, int]:
    names = [field[0] for field in call._fields_ if field[1] is _INT]
    return {name: getattr(call, name) for name in names}


def library_path() -> Path | None:
    """Return where the package's build left the library, if it did."""
    folder = Path(__file__).parent
    candidates = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def installed_library() -> KernelLibrary | str:
    """Return the library, or why there is none."""
    path = library_path()
    if path is None:
        return (
            "the C kernels were not built when ftmamba was installed; install a C compiler (gcc or "
            "clang) and install ftmamba again"
        )
    try:
        return KernelLibrary(path)
    except OSError as error:
        return f"{path.name} does not load ({error}); install ftmamba again on this machine"


def _openmp_entries() -> tuple[ctypes.c_void_p, ctypes.c_void_p] | None:
    """Return GOMP_parallel and omp_get_num_threads of the OpenMP runtime that torch has loaded."""
    maps = Path("/proc/self/maps")
    text = maps.read_text(encoding="utf-8") if maps.is_file() else ""
    loaded = set(re.findall(r"(/\S*lib(?:gomp|iomp5|omp)\b\S*)", text))
    of_torch = sorted(loaded, key=lambda path: "torch" not in path)
    bundled = Path(torch.__file__).parent.glob("lib/libomp*.dylib")
    for path in [*of_torch, *map(str, bundled)]:
        runtime = ctypes.CDLL(path)
        if hasattr(runtime, "GOMP_parallel") and hasattr(runtime, "omp_get_num_threads"):
            return (
                ctypes.cast(runtime.GOMP_parallel, _POINTER),
                ctypes.cast(runtime.omp_get_num_threads, _POINTER),
            )
    return None


Norm = tuple[Tensor, Tensor | None, float]
"""Weight, bias and eps of a LayerNorm."""


class MambaParameters(NamedTuple):
    """Weights of one mixer, in mamba-ssm's layout.

    Attributes:
        in_proj: (2E, D); rows 0 to E make x, rows E to 2E the gate.
        conv_weight: (E, 1, K).
        conv_bias: (E,) or None.
        x_proj: (R + 2N, E); its outputs are dt of low rank, B and C.
        dt_weight: (E, R).
        dt_bias: (E,).
        A_log: (E, N), float32; A = -exp(A_log).
        D: (E,), skip connection.
        out_proj: (D, E).
    """

    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_proj: Tensor


def library() -> KernelLibrary:
    """Return the library.

    Raises:
        RuntimeError: it is not installed, and why.
    """
    found = installed_library()
    if isinstance(found, str):
        raise RuntimeError(f"the compiled kernels cannot run: {found}")
    return found


def float32(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor in float32.

    Raises:
        RuntimeError: it is not on the CPU.
        TypeError: it is not float32 or narrower.
    """
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_cpu):
        return tensor
    if tensor.device.type != "cpu":
        raise RuntimeError(
            f"the compiled scan takes tensors on the CPU, got one on {tensor.device}; choose "
            "set_scan('auto')"
        )
    if tensor.dtype not in NARROW:
        raise TypeError(
            "the compiled scan takes float32, bfloat16 or float16, got "
            f"{str(tensor.dtype).removeprefix('torch.')}; choose set_scan('sequential')"
        )
    return tensor.to(torch.float32)


def is_kept(*tensors: Tensor | None) -> bool:
    """Return whether a backward pass may follow, so that states must be kept."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def as_pointers(tensors: Mapping[str, Tensor | None]) -> tuple[dict[str, int | None], list[Tensor]]:
    """Return the addresses of contiguous memory, None of none, and the tensors that own it."""
    alive = {name: x.contiguous() for name, x in tensors.items() if x is not None}
    pointers = {name: alive[name].data_ptr() or None if name in alive else None for name in tensors}
    return pointers, list(alive.values())


def state_shape(batch: int, length: int, inner: int, state: int) -> tuple[int, int, int, int]:
    """Return the shape of the states ahead of every chunk but the first; csrc/blocks.h."""
    n_chunks = 0
    if length:
        chunk = -(-length // -(-length // LONGEST_CHUNK))
        n_chunks = -(-length // chunk) - 1
    return batch, n_chunks, -(-state // 4) * 4, -(-inner // 16) * 16


def check_shapes(tensors: Mapping[str, Tensor | None], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError for a tensor whose shape is not the one named."""
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")


def check_scan(tensors: Sequence[Tensor]) -> None:
    """Check the shapes of a scan: u and dt (B, L, E), A (E, N), B and C (B, L, N).

    Raises:
        ValueError: one does not fit, or they are on several devices.
    """
    named = dict(zip(("u", "dt", "A", "B", "C"), tensors, strict=True))
    u, A = named["u"], named["A"]
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(
            "a scan takes u (batch, tokens, channels) and A (channels, states), got "
            f"{tuple(u.shape)} and {tuple(A.shape)}"
        )
    of_tokens = (*u.shape[:2], A.shape[1])
    shapes = {"dt": tuple(u.shape), "A": (u.shape[2], A.shape[1])}
    check_shapes(named, {**shapes, "B": of_tokens, "C": of_tokens})
    for name, tensor in named.items():
        if tensor.device != u.device:
            raise ValueError(f"u is on {u.device} and {name} on {tensor.device}; move them")
