"""Implementations of the selective scan, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .columns import near
from .scan_reference import selective_scan as reference_scan
from .scan_reference import selective_scan_last as reference_scan_last
from .scan_sequential import selective_scan as sequential_scan
from .scan_sequential import selective_scan_last as sequential_scan_last

ScanFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scan:
    """One implementation: all tokens' outputs, or the last token's alone."""

    name: str
    full: ScanFunction
    last: ScanFunction


SCANS = {
    "reference": Scan("reference", reference_scan, reference_scan_last),
    "sequential": Scan("sequential", sequential_scan, sequential_scan_last),
}


def scan_named(name: str) -> Scan:
    """Return the implementation of that name; `auto` picks the fastest that runs here.

    Raises:
        ValueError: no implementation has that name.
    """
    if name == "auto":
        return SCANS["sequential"]
    if name not in SCANS:
        known = ["auto", *SCANS]
        raise ValueError(f"scan must be one of {', '.join(known)}, got {name!r}{near(name, known)}")
    return SCANS[name]
