"""Implementations of the selective scan, by name, and the choice among them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.utils import logging

from .configuration_ftmamba import near
from .mamba_parameters import MambaParameters
from .scan_reference import selective_scan as reference_scan
from .scan_reference import selective_scan_last as reference_scan_last
from .scan_sequential import selective_scan as sequential_scan
from .scan_sequential import selective_scan_last as sequential_scan_last

logger = logging.get_logger(__name__)

ScanFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
WIDEST_FUSED_CONV = 32
"""Tokens of the widest convolution that a fused layer takes."""
Norm = tuple[Tensor, Tensor | None, float]
"""Weight, bias and eps of a LayerNorm."""


class LayerFunction(Protocol):
    """A whole Mamba layer in one: [hidden +] mixer(norm(hidden)), each part if asked for."""

    def __call__(
        self,
        hidden_BLD: Tensor,
        parameters: MambaParameters,
        norm: Norm | None,
        *,
        residual: bool,
        last: bool,
        reverse: bool,
    ) -> Tensor:
        """Return the tokens (B, L, D), or (B, D) of the last one; not both last and reverse."""
        ...


class CarriedLayerFunction(Protocol):
    """A whole Mamba layer in one, over tokens that follow others."""

    def __call__(
        self,
        hidden_BLD: Tensor,
        parameters: MambaParameters,
        norm: Norm | None,
        conv_BEJ: Tensor,
        state_BEN: Tensor,
        *,
        residual: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, L, D) and what both states are after them."""
        ...


@dataclass(frozen=True)
class Scan:
    """One implementation.

    Attributes:
        name: what `set_scan` calls it.
        full: all tokens' outputs.
        last: the last token's alone.
        layer: the fused layer, where the implementation has one.
        carried_layer: the same over tokens that follow others; no gradient passes.
        dropping_layer: from a rate to the fused layer with dropout of the mixer's output.
    """

    name: str
    full: ScanFunction
    last: ScanFunction
    layer: LayerFunction | None = None
    carried_layer: CarriedLayerFunction | None = None
    dropping_layer: Callable[[float], LayerFunction] | None = None

    def for_tensor(self, _: Tensor) -> "Scan":
        """Return the implementation for that tensor: always this one."""
        return self


@dataclass(frozen=True)
class AutoScan:
    """The fastest implementation for each tensor, of those that run here."""

    on_cpu: Scan
    on_cuda: Scan
    elsewhere: Scan

    def for_tensor(self, tensor: Tensor) -> Scan:
        """Return the implementation for that tensor's device and type."""
        if tensor.dtype is torch.float64:
            return self.elsewhere
        if tensor.is_cpu:
            return self.on_cpu
        return self.on_cuda if tensor.is_cuda else self.elsewhere


class CannotRun(RuntimeError):  # noqa: N818 - it says what is the case, and is caught as that
    """An implementation that was asked for cannot run here; says why, and how to get it."""


def _reference() -> Scan:
    return Scan("reference", reference_scan, reference_scan_last)


def _sequential() -> Scan:
    return Scan("sequential", sequential_scan, sequential_scan_last)


# The version of the functions that the package `ftmamba` offers to this code.
CPU_CONTRACT = 1
CPU_CANNOT = "the cpu scan cannot run here: "


def _cpu_plugin() -> Any:
    """Return the functions of the package `ftmamba`'s compiled kernels."""
    found = entry_points(group="ftmamba.scans", name="cpu")
    if not found:
        raise CannotRun(CPU_CANNOT + "it comes with the package ftmamba; pip install ftmamba")
    try:
        plugin: Any = next(iter(found)).load()
    except ImportError as error:
        raise CannotRun(
            f"{CPU_CANNOT}ftmamba does not import ({error}); install it again"
        ) from error
    if plugin.CONTRACT != CPU_CONTRACT:
        raise CannotRun(
            f"{CPU_CANNOT}the installed ftmamba speaks version {plugin.CONTRACT} of the kernels' "
            f"interface and this model's code version {CPU_CONTRACT}; install the ftmamba that "
            "the model was saved with"
        )
    if (reason := plugin.why_not()) is not None:
        raise CannotRun(CPU_CANNOT + reason)
    return plugin


def _cpu() -> Scan:
    plugin = _cpu_plugin()
    return Scan(
        "cpu",
        plugin.selective_scan,
        plugin.selective_scan_last,
        plugin.fused_layer,
        getattr(plugin, "carried_layer", None),
        getattr(plugin, "dropping_layer", None),
    )


def _triton() -> Scan:
    from .scan_triton import selective_scan, selective_scan_last, triton_layer, why_not

    if (reason := why_not()) is not None:
        raise CannotRun(reason)
    return Scan("triton", selective_scan, selective_scan_last, triton_layer)


def _mamba_ssm() -> Scan:
    from .scan_mamba_ssm import selective_scan, selective_scan_last, why_not

    if (reason := why_not()) is not None:
        raise CannotRun(reason)
    return Scan("mamba_ssm", selective_scan, selective_scan_last)


SCANS: dict[str, Callable[[], Scan]] = {
    "reference": _reference,
    "sequential": _sequential,
    "cpu": _cpu,
    "triton": _triton,
    "mamba_ssm": _mamba_ssm,
}
"""What makes each implementation; raises `CannotRun` where it cannot run."""


@functools.cache
def _made(name: str) -> Scan | str:
    try:
        return SCANS[name]()
    except CannotRun as error:
        return str(error)


@functools.cache
def cpu_kernel(name: str) -> Callable[..., Tensor] | None:
    """Return a compiled function of CPUs beside the scans', or None where there is none."""
    try:
        function: Callable[..., Tensor] | None = getattr(_cpu_plugin(), name, None)
    except CannotRun:
        return None
    return function


def scan_named(name: str) -> Scan | AutoScan:
    """Return the implementation of that name; `auto` takes the fastest one for each tensor.

    Raises:
        ValueError: no implementation has that name.
        CannotRun: the implementation cannot run here; says why and how to get it.
    """
    if name == "auto":
        return _auto()
    if name not in SCANS:
        known = ["auto", *SCANS]
        raise ValueError(f"scan must be one of {', '.join(known)}, got {name!r}{near(name, known)}")
    made = _made(name)
    if isinstance(made, str):
        raise CannotRun(made)
    return made


def _auto() -> AutoScan:
    on_cpu, sequential = _made("cpu"), _sequential()
    # Importing Triton takes as long as loading a checkpoint.
    on_cuda = _made("triton") if torch.cuda.is_available() else sequential
    if isinstance(on_cpu, str):
        logger.warning_once(f"The scan runs in plain torch, many times slower on a CPU: {on_cpu}.")
    if isinstance(on_cuda, str):
        logger.warning_once(f"The scan runs in plain torch, slower on a GPU: {on_cuda}.")
    return AutoScan(
        on_cpu=on_cpu if isinstance(on_cpu, Scan) else sequential,
        on_cuda=on_cuda if isinstance(on_cuda, Scan) else sequential,
        elsewhere=sequential,
    )
