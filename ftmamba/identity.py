"""What a run is: data, schema, split, network, options and code, each part by itself.

Training checkpoints and `all_results.json` hold the identity of the run that wrote them. Resuming
and evaluating compare it with what they are given, and name what differs.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import modeling_ftmamba
from ftmamba.data.arrow_files import content_hash
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables
from ftmamba.recipe import Recipe, TrainingRecipe, load_preset, to_plain

Identity = dict[str, dict[str, Any]]
"""Part -> name -> plain value, ready for JSON."""

FREE_TO_CHANGE = (
    "allow_changed",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "early_stopping_patience",
    "evaluate_every",
    "log_every_steps",
    "report_to",
    "resume_from_checkpoint",
    "stop_after_epochs",
    "with_tracking",
)
"""Options of training that say when to look, save or stop, and change no step."""

_EVALUATION = ("k", "mask_seen", "selection_metric", "refit", "refit_share")
_CODE = ("ftmamba/data", "ftmamba/training", "ftmamba/kernels", "modeling_ftmamba")


def identity_of(recipe: Recipe, tables: Tables, *, n_processes: int = 1) -> Identity:
    """Return the identity of a recipe's run on some tables."""
    evaluation = to_plain(recipe.evaluation)
    return {
        "data": data_identity(tables),
        "schema": _schema_identity(tables.schema),
        "split": {"kind": recipe.split.kind, **recipe.split.options(recipe.seed)},
        "model": {**load_preset(recipe.model.preset), **recipe.model.overrides},
        "evaluation": {name: evaluation[name] for name in _EVALUATION},
        **training_identity(recipe.training, seed=recipe.seed, n_processes=n_processes),
    }


def training_identity(recipe: TrainingRecipe, *, seed: int, n_processes: int) -> Identity:
    """Return the parts of the identity that do not depend on the tables."""
    options = {k: v for k, v in to_plain(recipe).items() if k not in FREE_TO_CHANGE}
    options |= {f"loss.{name}": value for name, value in options.pop("loss").items()}
    training = {**options, "seed": seed, "n_processes": n_processes}
    packages = {name: version(name) for name in ("ftmamba", "torch")}
    return {"training": training, "code": {**packages, "source": _source_hash()}}


def data_identity(tables: Tables, n_rows: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return rows and a digest of each column of the tables, or of their first rows."""
    facts: dict[str, Any] = {}
    for name, table in (("users", tables.users), ("items", tables.items)):
        first = table.slice(0, None if n_rows is None else n_rows[name])
        digests = {one: content_hash(first.select([one])).hex() for one in first.column_names}
        facts[name] = {"rows": first.num_rows, "columns": digests}
    rows = tables.interactions
    first = slice(None if n_rows is None else n_rows["interactions"])
    arrays: dict[str, NDArray[Any] | None] = {
        "user": rows.user_ids, "item": rows.item_ids, "time": rows.times, "weight": rows.weights,
        **rows.context,
    }  # fmt: skip
    digests = {k: _array_hash(array[first]) for k, array in arrays.items() if array is not None}
    facts["interactions"] = {"rows": len(rows.user_ids[first]), "columns": digests}
    return facts


def differences(
    stored: Mapping[str, Any], current: Identity, *, without: Collection[str] = ()
) -> list[str]:
    """Return a sentence for each value in which two identities differ, the data's apart."""
    return [
        f"{part}.{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
        for part in current
        if part != "data" and part not in without
        for before, now in [(stored.get(part, {}), current[part])]
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and f"{part}.{name}" not in without
    ]


def data_differences(stored: Mapping[str, Any], tables: Tables) -> tuple[list[str], bool]:
    """Compare the data of an identity with tables.

    Returns:
        A sentence for each difference, and whether the stored rows are still what they were: the
            same users, items and interactions in the same order, perhaps with others after them.
    """
    current = data_identity(tables)
    if current == stored:
        return [], True
    try:
        n_rows = {name: int(facts["rows"]) for name, facts in stored.items()}
        first = data_identity(tables, n_rows)
        return _table_differences(stored, current, first), _is_extended(stored, first, tables)
    except (KeyError, TypeError, AttributeError, ValueError):
        return ["the data are of a form that this version does not compare"], False


def _table_differences(
    stored: Mapping[str, Any], current: Mapping[str, Any], first: Mapping[str, Any]
) -> list[str]:
    found = []
    for name, now in current.items():
        before, table = stored[name], f"table {name!r}"
        columns, others = before["columns"], first[name]["columns"]
        if now["rows"] != before["rows"]:
            found.append(f"{table} had {before['rows']} rows and has {now['rows']}")
        for kind, names in (
            ("lacks", columns.keys() - others.keys()),
            ("has a new", others.keys() - columns.keys()),
        ):
            found += [f"{table} {kind} column {column!r}" for column in sorted(names)]
        changed = [c for c in others if c in columns and others[c] != columns[c]]
        if changed and now["rows"] >= before["rows"]:
            found.append(f"{table} has other values of {', '.join(changed)}")
    return found


def _is_extended(stored: Mapping[str, Any], first: Mapping[str, Any], tables: Tables) -> bool:
    keys = {"users": [tables.schema.users.key], "items": [tables.schema.items.key]}
    return all(
        facts["rows"] == stored[name]["rows"]
        and all(
            facts["columns"].get(c) == stored[name]["columns"].get(c)
            for c in keys.get(name, ["user", "item", "time"])
        )
        for name, facts in first.items()
    )


def _schema_identity(schema: Schema) -> dict[str, Any]:
    """Return the schema under dotted names; the order of columns counts, for it is the tokens'."""
    values = schema.to_dict()
    flat: dict[str, Any] = {}
    for table, facts in values.items():
        columns = facts.pop("columns", {})
        flat |= {f"{table}.{name}": value for name, value in facts.items()}
        flat |= {f"{table}.{name}": kind for name, kind in columns.items()}
        if columns:
            flat[f"{table}.columns"] = list(columns)
    # As JSON gives it back.
    return dict(json.loads(json.dumps(flat)))


def _array_hash(array: NDArray[Any]) -> str:
    digest = hashlib.blake2b(str(array.dtype).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@cache
def _source_hash() -> str:
    """Hash the code that shapes a run's steps and figures."""
    digest = hashlib.blake2b(digest_size=8)
    root = Path(modeling_ftmamba.__file__).parents[1]
    for folder in _CODE:
        for path in sorted((root / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _shown(value: object) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
