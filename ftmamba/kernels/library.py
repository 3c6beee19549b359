"""The shared library of the C kernels: found, loaded, and told which threads to use.

It is built with the package where a C compiler is at hand and left out where none is; see
`why_missing`. Nothing here is looked at before the first use.
"""

import ctypes
import functools
import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TypeAlias

import torch

MOST_THREADS = 256
"""As many threads as the library ever uses."""

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class LayerCall(ctypes.Structure):
    """`Layer` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in (
            "rows", "length", "hidden", "inner", "state", "rank", "kernel",
            "threads", "last", "reverse", "residual",
        )),
        ("eps", ctypes.c_double),
        ("drop_rate", ctypes.c_double),
        ("drop_seed", ctypes.c_uint64),
        *((name, _POINTER) for name in (
            "x", "norm_weight", "norm_bias", "in_proj", "conv_weight", "conv_bias", "x_proj",
            "dt_weight", "dt_bias", "A_log", "D", "out_proj", "out", "states",
            "conv_before", "state_before", "conv_after", "state_after",
            "d_out", "d_x", "d_norm_weight", "d_norm_bias", "d_in_proj", "d_conv_weight",
            "d_conv_bias", "d_x_proj", "d_dt_weight", "d_dt_bias", "d_A_log", "d_D", "d_out_proj",
        )),
    )  # fmt: skip


class ScanCall(ctypes.Structure):
    """`Scan` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("rows", "length", "inner", "state", "threads", "last")),
        *((name, _POINTER) for name in (
            "u", "dt", "A", "B", "C", "y", "states", "d_y", "d_u", "d_dt", "d_A", "d_B", "d_C",
        )),
    )  # fmt: skip


class DropoutCall(ctypes.Structure):
    """`Dropout` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("count", "threads", "narrow_x", "narrow_out")),
        ("seed", ctypes.c_uint64),
        ("rate", ctypes.c_double),
        *((name, _POINTER) for name in ("x", "added", "out")),
    )  # fmt: skip


class GeluCall(ctypes.Structure):
    """`Gelu` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("count", "threads", "narrow")),
        ("seed", ctypes.c_uint64),
        ("rate", ctypes.c_double),
        *((name, _POINTER) for name in ("x", "d_out", "out")),
    )  # fmt: skip


class NormalizeCall(ctypes.Structure):
    """`Normalize` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("rows", "size", "threads")),
        ("eps", ctypes.c_double),
        *((name, _POINTER) for name in ("x", "d_out", "out")),
    )  # fmt: skip


class ExponentialsCall(ctypes.Structure):
    """`Exponentials` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("rows", "columns", "threads", "stride", "narrow", "width")),
        ("bias", ctypes.c_double),
        *((name, _POINTER) for name in (
            "x", "largest", "sum", "listed", "lists", "list", "ahead", "kept",
        )),
    )  # fmt: skip


class SoftmaxCall(ctypes.Structure):
    """`Softmax` of csrc/kernels.h."""

    _fields_ = (
        *((name, _INT) for name in ("rows", "columns", "threads", "size", "width")),
        ("bias", ctypes.c_double),
        *((name, _POINTER) for name in (
            "hidden", "items", "targets", "target", "largest", "sum", "listed", "lists", "list",
            "ahead", "kept", "share", "d_hidden", "d_items",
        )),
    )  # fmt: skip


Call: TypeAlias = (
    LayerCall | ScanCall | DropoutCall | GeluCall | NormalizeCall | ExponentialsCall | SoftmaxCall
)


class KernelLibrary:
    """The library's functions at one instruction set.

    Args:
        path: the shared library.
        variant: name of an instruction set, one of `variants()`; the fastest by default.

    Raises:
        OSError: the file is no library that this machine can load.
        ValueError: this processor does not run the variant.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self._library = ctypes.CDLL(str(path))
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

    def run(self, function: str, call: Call) -> None:
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


def _sizes(call: Call) -> dict[str, int]:
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
