import logging
import sys
import time
from types import SimpleNamespace

import pytest

from ftmamba.results import measured_cost


class Tracker:
    """Stands in for codecarbon's tracker."""

    options: dict

    def __init__(self, **options):
        Tracker.options = options
        self.final_emissions_data = SimpleNamespace(energy_consumed=0.002)

    def start(self):
        """Begin."""

    def stop(self):
        return 0.0005


class BrokenTracker(Tracker):
    def stop(self):
        raise RuntimeError("no counters here")


def install(monkeypatch, tracker):
    module = None if tracker is None else SimpleNamespace(OfflineEmissionsTracker=tracker)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.delenv("RANK", raising=False)


def test_time_memory_and_hardware_are_measured(monkeypatch):
    install(monkeypatch, None)
    with measured_cost() as cost:
        time.sleep(0.01)
    assert 0.01 <= cost.seconds < 60
    assert 10**7 < cost.peak_memory < 10**12
    assert cost.hardware
    assert (cost.n_processes, cost.energy, cost.emissions) == (1, None, None)


def test_energy_is_measured_where_codecarbon_is_and_nothing_is_sent(monkeypatch):
    install(monkeypatch, Tracker)
    with measured_cost("fra") as cost:
        pass
    assert (cost.energy, cost.emissions, cost.country) == (0.002, 0.5, "FRA")
    assert Tracker.options["country_iso_code"] == "FRA"
    assert Tracker.options["output_methods"] == []


def test_without_a_country_no_emissions_are_claimed(monkeypatch):
    install(monkeypatch, Tracker)
    with measured_cost() as cost:
        pass
    assert (cost.energy, cost.emissions, cost.country) == (0.002, None, "")


def test_one_process_of_many_measures_the_machine(monkeypatch):
    install(monkeypatch, Tracker)
    monkeypatch.setenv("RANK", "1")
    with measured_cost() as cost:
        pass
    assert cost.energy is None


def test_a_tracker_that_fails_does_not_end_the_run(monkeypatch, caplog):
    install(monkeypatch, BrokenTracker)
    with caplog.at_level(logging.WARNING), measured_cost("FRA") as cost:
        pass
    assert "no counters here" in caplog.text
    assert (cost.energy, cost.emissions) == (None, None)
    assert cost.seconds >= 0


def test_an_error_inside_the_block_is_the_callers(monkeypatch):
    install(monkeypatch, Tracker)
    with pytest.raises(KeyError), measured_cost() as cost:
        raise KeyError("x")
    assert cost.energy == 0.002
