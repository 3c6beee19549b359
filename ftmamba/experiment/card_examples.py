"""What a card shows of using the model: a record nobody has, the code, the endpoint."""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import modeling_ftmamba
from ftmamba.experiment.data_facts import of_column
from hub_cards import EndpointFacts
from hub_cards.handler import ANSWER_SCHEMA, REQUEST_SCHEMA
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

HANDLER_FILE = "handler.py"
ROOTS = tuple(
    f"{name}_ftmamba.py" for name in ("configuration", "modeling", "processing", "pipeline")
)
"""Where Transformers starts; what these import travels with them."""

AN_ANSWER = [{"item_key": "its key", "score": 4.2, "title": "its title"}]


def code_hashes(folder: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of each Python file that is published with a checkpoint.

    Args:
        folder: of a checkpoint; None for the code that would travel with a new one.
    """
    folder = folder or Path(modeling_ftmamba.__path__[0])
    sources = {folder / name for name in ROOTS}
    for source in list(sources):
        sources |= {Path(path) for path in get_relative_import_files(source)}
    code = {path.name: path.read_bytes() for path in sources}
    # Pushing adds the handler where the folder has none.
    handler = folder / HANDLER_FILE
    shipped = files("hub_cards") / HANDLER_FILE
    code[HANDLER_FILE] = (handler if handler.is_file() else shipped).read_bytes()
    return {name: hashlib.sha256(code[name]).hexdigest() for name in sorted(code)}


def endpoint_facts(example: Mapping[str, Any]) -> EndpointFacts:
    """Return what the endpoint's handler says of its requests, with an example of each kind."""
    wrong = {
        "type": "bad_request",
        "message": "top_k must be a whole number from 1 to 1000, got 0",
        "field": "parameters.top_k",
    }
    return EndpointFacts(
        request=_json({"inputs": dict(example), "parameters": {"top_k": 10}}),
        answer=_json(AN_ANSWER),
        error=_json({"error": wrong}, indent=2),
        request_schema=_json(REQUEST_SCHEMA, indent=2),
        answer_schema=_json(ANSWER_SCHEMA, indent=2),
    )


def typical_record(extractor: FTMambaFeatureExtractor, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a made-up user of the most frequent values, so that nobody's record is shown.

    Args:
        extractor: fitted; its key column is left out.
        tables: what `describe_tables` returns, for medians; numbers are left out without it.
    """
    record: dict[str, Any] = {}
    for column in extractor.columns("user"):
        if column.name == extractor.user_key:
            continue
        quantiles = of_column(tables, "users", column.name).get("quantiles")
        if column.kind == "numeric" and quantiles:
            median = quantiles[len(quantiles) // 2]
            record[column.name] = int(median) if median == int(median) else median
        elif column.kind in ("categorical", "categories"):
            frequent = extractor.known_values("user", column.name)[:1]
            if frequent:
                record[column.name] = frequent if column.kind == "categories" else frequent[0]
    return record


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
