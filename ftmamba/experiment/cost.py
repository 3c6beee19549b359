"""What a run costs: time, memory and, where codecarbon is installed, energy."""

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

logger = logging.getLogger(__name__)

_GRID_FOR_ENERGY_ALONE = "FRA"


@dataclass
class Cost:
    """What was measured of a stretch of work; None where nothing measured it.

    Attributes:
        seconds: wall time.
        hardware: what it ran on.
        n_processes: how many worked together.
        peak_memory: bytes, of this process, from its start.
        energy: kWh of this machine.
        emissions: grams of CO2 equivalents on the grid of `country`.
        country: ISO code of three letters; empty if none was named.
    """

    seconds: float = 0.0
    hardware: str = ""
    n_processes: int = 1
    peak_memory: int | None = None
    energy: float | None = None
    emissions: float | None = None
    country: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@contextmanager
def measured_cost(country: str = "") -> Iterator[Cost]:
    """Measure the block; its `Cost` is complete when the block has ended.

    Energy is estimated by codecarbon, offline: nothing is sent anywhere. A tracker that fails is a
    line in the log, never the end of a run.

    Args:
        country: ISO code of three letters, whose grid turns energy into emissions; empty leaves
            emissions out.
    """
    cost = Cost(hardware=hardware(), n_processes=n_processes(), country=country.upper())
    tracker = _start_tracker(cost.country)
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - start, 3)
        cost.peak_memory = peak_memory()
        _stop_tracker(tracker, cost)


def hardware() -> str:
    """Say what this process runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def n_processes() -> int:
    """Return how many processes work together."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def peak_memory() -> int | None:
    """Return the most bytes this process has had in memory since its start, if that is known."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _start_tracker(country: str) -> Any:
    """Start codecarbon, or return None where it is not installed or does not work."""
    if os.environ.get("RANK", "0") != "0":
        # It measures the machine, so one process does.
        return None
    try:
        codecarbon = import_module("codecarbon")
    except ImportError:
        return None
    try:
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=country or _GRID_FOR_ENERGY_ALONE,
            output_methods=[],
            log_level="error",
            tracking_mode="machine",
            allow_multiple_runs=True,
        )
        tracker.start()
    except Exception as error:
        logger.warning("energy is not measured: codecarbon does not start (%s)", error)
        return None
    return tracker


def _stop_tracker(tracker: Any, cost: Cost) -> None:
    if tracker is None:
        return
    try:
        kilograms = tracker.stop()
        cost.energy = float(tracker.final_emissions_data.energy_consumed)
    except Exception as error:
        logger.warning("energy was not measured: codecarbon failed (%s)", error)
        return
    if cost.country and kilograms is not None:
        cost.emissions = 1000 * float(kilograms)
