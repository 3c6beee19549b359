"""What tables hold, counted on paper, and what a run costs."""

import json
import logging
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables
from ftmamba.results import describe_column, describe_tables, measured_cost
from modeling_ftmamba.configuration_ftmamba import Column


def described(values, kind, **fields):
    return describe_column(pa.chunked_array([values]), Column("x", kind, **fields))


@pytest.mark.parametrize(
    ("values", "kind", "fields", "facts"),
    [
        (["a", None, "", "b", "a"], "categorical", {}, {"missing": 0.4, "distinct": 2}),
        (["war|drama", " drama ", None, ""], "categories", {"separator": "|"},
         {"missing": 0.5, "distinct": 2}),
        ([["war", "drama"], ["drama"], None, None], "categories", {},
         {"missing": 0.5, "distinct": 2}),
        (pa.array([[1, 2], [2], []]), "categories", {}, {"missing": 0.0, "distinct": 2}),
        ([[1.0, 2.0], None], "vector", {}, {"missing": 0.5}),
        (pa.array([0, 1, 1], pa.timestamp("s")), "timestamp", {}, {"missing": 0.0, "distinct": 2}),
        (pa.array([None, None], pa.float64()), "numeric", {}, {"missing": 1.0, "distinct": 0}),
    ],
)  # fmt: skip
def test_missing_and_different_values_are_counted(values, kind, fields, facts):
    assert described(values, kind, **fields) == facts


def test_numbers_have_quantiles_that_leave_out_the_extremes():
    facts = described([None, *range(101)], "numeric")
    assert facts["missing"] == pytest.approx(1 / 102)
    assert (facts["distinct"], facts["quantiles"]) == (101, [5.0, 50.0, 95.0])


def tables(times=None):
    schema = Schema.from_dict(
        {
            "users": {"key": "u", "columns": {"age": "numeric"}},
            "items": {"key": "i", "columns": {"i": "categorical"}},
            "interactions": {"user": "u", "item": "i"},
        }
    )
    users = pa.table({"u": ["a", "b"], "age": [1, None]})
    items = pa.table({"i": [str(n) for n in range(20)]})
    ids = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])
    return Tables(users, items, Interactions(*ids, times, None, n_users=2, n_items=20), schema)


def test_interactions_are_summed_up():
    facts = describe_tables(tables(np.array([0, 86_400, 86_400 * 365, 5])))
    assert facts["users"]["rows"] == 2
    assert facts["users"]["columns"]["age"]["missing"] == 0.5
    assert "popularity_7d" not in facts["users"]["columns"]
    counted = facts["interactions"]
    assert (counted["rows"], counted["per_user"][1]) == (4, 2.0)
    # Two of twenty items, of which one has two interactions and one has one.
    assert counted["share_of_top_tenth"] == 0.75
    assert (counted["first"], counted["last"]) == ("1970-01-01", "1971-01-01")
    assert json.loads(json.dumps(facts)) == facts
    assert "first" not in describe_tables(tables())["interactions"]


def test_the_missing_rate_is_of_the_table_as_it_was_read():
    read = load_tables(
        {"u": ["a", "b", "c", "d"], "age": ["", "3", "nan", "5"]},
        {"i": ["x"]},
        {"u": ["a"], "i": ["x"]},
        {
            "users": {"key": "u", "columns": {"age": "numeric"}},
            "items": {"key": "i", "columns": {"i": "categorical"}},
            "interactions": {"user": "u", "item": "i"},
        },
    )
    assert describe_tables(read)["users"]["columns"]["age"]["missing"] == 0.5


class Tracker:
    """Stands in for codecarbon's tracker."""

    fails = False

    def __init__(self, **options):
        Tracker.options = options
        self.final_emissions_data = SimpleNamespace(energy_consumed=0.002)

    def start(self):
        """Begin."""

    def stop(self):
        if Tracker.fails:
            raise RuntimeError("no counters here")
        return 0.0005


@pytest.fixture
def codecarbon(monkeypatch):
    module = SimpleNamespace(OfflineEmissionsTracker=Tracker)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.delenv("RANK", raising=False)


def test_time_memory_and_hardware_are_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with measured_cost() as cost:
        time.sleep(0.01)
    assert 0.01 <= cost.seconds < 60
    assert 10**7 < cost.peak_memory < 10**12
    assert cost.hardware
    assert (cost.n_processes, cost.energy, cost.emissions) == (1, None, None)


@pytest.mark.parametrize(("country", "emissions"), [("fra", 0.5), ("", None)])
def test_energy_is_measured_offline_and_emissions_need_a_country(codecarbon, country, emissions):
    with measured_cost(country) as cost:
        pass
    assert (cost.energy, cost.emissions, cost.country) == (0.002, emissions, country.upper())
    assert Tracker.options["country_iso_code"] == "FRA"
    assert Tracker.options["output_methods"] == []


def test_one_process_of_many_measures_the_machine(codecarbon, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with measured_cost() as cost:
        pass
    assert cost.energy is None


def test_neither_a_failing_tracker_nor_an_error_inside_changes_the_other(
    codecarbon, monkeypatch, caplog
):
    with pytest.raises(KeyError), measured_cost() as cost:
        raise KeyError("x")
    assert cost.energy == 0.002
    monkeypatch.setattr(Tracker, "fails", True)
    with caplog.at_level(logging.WARNING), measured_cost("FRA") as cost:
        pass
    assert "no counters here" in caplog.text
    assert (cost.energy, cost.emissions) == (None, None)
