"""What a finished run leaves: facts of its data, its cost, its checkpoint.

Shapes: R interactions.
"""

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ftmamba.checkpoint import Checkpoint
from ftmamba.comparison import Comparison, group_figures
from ftmamba.data.interactions import Interactions
from ftmamba.data.readers import is_text
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Split
from ftmamba.known_users import known_users
from ftmamba.recipe import Recipe
from ftmamba.table_embedding import embed_catalogue
from ftmamba.training.run import Trained, make_protocol
from modeling_ftmamba.configuration_ftmamba import Column

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")
SHARES = (0.05, 0.5, 0.95)
"""Quantiles given of numbers: neither the least nor the greatest, which may be one person's."""


def make_checkpoint(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    trained: Trained,
    comparison: Comparison | None,
    *,
    cost: "Cost | None" = None,
) -> Checkpoint:
    """Gather what `save_checkpoint` writes, without a card; the catalogue is as of the test.

    Without a comparison, as before the test part is read, the results have no models.
    """
    users = tables.schema.users
    data = trained.data
    catalogue = embed_catalogue(
        trained.model,
        data.catalogue_rows(split.test_time),
        keys=tables.item_keys,
        titles=tables.item_titles,
        as_of=data.as_of if split.test_time is None else split.test_time,
        exclude_seen=make_protocol(recipe.evaluation).mask_seen,
    )
    return Checkpoint(
        model=trained.model,
        extractor=data.extractor,
        catalogue=replace(catalogue, blend=None if comparison is None else comparison.blend),
        users=known_users(
            tables.users,
            split.before_test,
            key=users.key,
            columns=[column.name for column in users.raw_columns],
        ),
        results={
            **({} if comparison is None else comparison.to_dict()),
            "training": {
                "best_epoch": trained.result.best_epoch,
                "best_score": trained.result.best_score,
                "history": trained.result.history,
                "seconds": trained.seconds,
            },
            "identity": trained.identity,
            "n_parameters": trained.model.num_parameters(),
            "seed": recipe.seed,
            "hardware": hardware(),
            "versions": {name: version(name) for name in PACKAGES},
            "split": split.description,
            "data": describe_data(tables, split),
            "user_groups": group_figures(
                comparison.evaluations,
                tables,
                columns=recipe.evaluation.user_groups,
                metric=comparison.metric,
            )
            if comparison is not None
            else {},
            "cost": None if cost is None else asdict(cost),
        },
        recipe=recipe.to_dict(),
    )


def describe_data(tables: Tables, split: Split) -> dict[str, Any]:
    """Return the facts of the tables and how many interactions each part has, ready for JSON."""
    parts = {name: len(getattr(split, name)) for name in ("train", "validation", "test")}
    return {**describe_tables(tables), "split": parts}


def describe_tables(tables: Tables) -> dict[str, Any]:
    """Return rows, missing shares, cardinalities and quantiles of the three tables."""
    facts: dict[str, Any] = {
        name: {
            "rows": table.num_rows,
            "columns": {
                column.name: describe_column(table.column(column.name), column)
                for column in schema.raw_columns
            },
        }
        for name, table, schema in (
            ("users", tables.users, tables.schema.users),
            ("items", tables.items, tables.schema.items),
        )
    }
    return {**facts, "interactions": _describe_interactions(tables.interactions)}


def describe_column(values: pa.ChunkedArray, column: Column) -> dict[str, Any]:
    """Return the share of rows without a value, the number of different ones, and quantiles.

    Of a set the different members count; of a vector only missing rows.
    """
    n_rows = len(values)
    if is_text(values.type):
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    facts: dict[str, Any] = {"missing": values.null_count / n_rows if n_rows else 0.0}
    if column.kind == "vector":
        return facts
    single = _members(values, column.separator) if column.kind == "categories" else values
    facts["distinct"] = pc.count_distinct(single).as_py()
    if column.kind == "numeric" and values.null_count < n_rows:
        facts["quantiles"] = pc.quantile(values, q=list(SHARES)).to_pylist()
    return facts


def _members(values: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    if is_text(values.type):
        values = pc.split_pattern(values, separator)
    members = pc.list_flatten(values)
    if not is_text(members.type):
        return members
    members = pc.utf8_trim_whitespace(members)
    return members.filter(pc.not_equal(members, ""))


def _describe_interactions(interactions: Interactions) -> dict[str, Any]:
    def quantiles(ids_R: NDArray[np.int64], n_rows: int) -> list[float]:
        counts = np.bincount(ids_R, minlength=n_rows)
        return [float(value) for value in np.quantile(counts, SHARES)]

    def day(seconds: int) -> str:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()

    counts = np.sort(np.bincount(interactions.item_ids, minlength=interactions.n_items))[::-1]
    top_tenth = counts[: max(1, -(-len(counts) // 10))]
    facts: dict[str, Any] = {
        "rows": len(interactions),
        "per_user": quantiles(interactions.user_ids, interactions.n_users),
        "per_item": quantiles(interactions.item_ids, interactions.n_items),
        "share_of_top_tenth": float(top_tenth.sum() / max(1, counts.sum())),
    }
    if interactions.times is not None and len(interactions):
        facts["first"] = day(int(interactions.times.min()))
        facts["last"] = day(int(interactions.times.max()))
    return facts


@dataclass
class Cost:
    """What a stretch of work cost; None where nothing measured it.

    Attributes:
        seconds: wall time.
        peak_memory: bytes, of this process, from its start.
        energy: kWh of this machine.
        emissions: grams of CO2 equivalents on the grid of `country`, an ISO code of three letters.
    """

    seconds: float = 0.0
    hardware: str = ""
    n_processes: int = 1
    peak_memory: int | None = None
    energy: float | None = None
    emissions: float | None = None
    country: str = ""


@contextmanager
def measured_cost(country: str = "") -> Iterator[Cost]:
    """Measure the block; its `Cost` is complete when the block has ended.

    Energy is estimated by codecarbon, offline: nothing is sent anywhere. A tracker that fails is a
    line in the log, never the end of a run.

    Args:
        country: ISO code of three letters, whose grid turns energy into emissions; empty leaves
            emissions out.
    """
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    n_processes = torch.distributed.get_world_size() if initialized else 1
    cost = Cost(hardware=hardware(), n_processes=n_processes, country=country.upper())
    tracker = _start_tracker(cost.country)
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - start, 3)
        cost.peak_memory = _peak_memory()
        if tracker is not None:
            try:
                kilograms = tracker.stop()
                cost.energy = float(tracker.final_emissions_data.energy_consumed)
                if cost.country and kilograms is not None:
                    cost.emissions = 1000 * float(kilograms)
            except Exception as error:
                logger.warning("energy was not measured: codecarbon failed (%s)", error)


def hardware() -> str:
    """Return what this process runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _peak_memory() -> int | None:
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
        tracker = import_module("codecarbon").OfflineEmissionsTracker(
            # Some grid is required; without a country its emissions are left out.
            country_iso_code=country or "FRA",
            output_methods=[],
            log_level="error",
            tracking_mode="machine",
            allow_multiple_runs=True,
        )
        tracker.start()
    except ImportError:
        return None
    except Exception as error:
        logger.warning("energy is not measured: codecarbon does not start (%s)", error)
        return None
    return tracker
