"""What a Hugging Face inference endpoint runs: a request as JSON in, recommendations out.

This file travels with the checkpoint and needs torch and transformers only. The endpoint makes one
`EndpointHandler` and calls it with the decoded body of every request.
"""

import logging
from typing import Any

from transformers import pipeline

MOST_RECORDS, MOST_ITEMS = 1024, 1000
MOST_ANSWERED = 2**16
"""Of a request: records times items for each."""
_LONGEST_MESSAGE = 500

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}
_ITEM = {"item_key": _TEXT, "score": {"type": "number"}, "title": _TEXT}
_ITEMS = {
    "type": "array",
    "items": {"type": "object", "required": list(_ITEM), "properties": _ITEM},
}
_ERROR = {
    "type": {"enum": ["bad_request", "internal_error"]},
    "message": _TEXT,
    "field": {"description": "what is wrong, such as inputs[2].age", "type": ["string", "null"]},
}
REQUEST_SCHEMA: dict[str, Any] = {
    "$schema": _DRAFT,
    "title": "Request",
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "description": "one record of a user, or a list of them: columns and their raw values",
            "anyOf": [
                {"type": "object"},
                {"type": "array", "items": {"type": "object"}, "maxItems": MOST_RECORDS},
            ],
        },
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "top_k": {
                    "description": "items to recommend for a record; times the records, at most "
                    f"{MOST_ANSWERED}",
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MOST_ITEMS,
                    "default": 10,
                },
                "exclude": {
                    "description": "keys of items to leave out",
                    "type": "array",
                    "items": {"type": ["string", "number", "boolean"]},
                    "default": [],
                },
                "exclude_seen": {
                    "description": "leave out the items of a record's history; by default as the "
                    "model was evaluated",
                    "type": "boolean",
                },
            },
        },
    },
}
ANSWER_SCHEMA: dict[str, Any] = {
    "$schema": _DRAFT,
    "title": "Answer",
    "anyOf": [
        {**_ITEMS, "description": "for one record: its items, best first"},
        {"type": "array", "items": _ITEMS, "description": "for a list: the items of each record"},
        {
            "description": "for a request that cannot be answered",
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {"type": "object", "required": list(_ERROR), "properties": _ERROR}
            },
        },
    ],
}

logger = logging.getLogger(__name__)


class EndpointHandler:
    """Answers requests; may be called from several threads at once.

    Args:
        path: folder of the checkpoint.
    """

    def __init__(self, path: str = "") -> None:
        make_pipeline: Any = pipeline
        self._recommend = make_pipeline("recommendation", model=path, trust_remote_code=True)
        self._most_items = min(MOST_ITEMS, len(self._recommend.catalogue))

    def __call__(self, data: Any) -> Any:
        """Answer one request.

        Args:
            data: `{"inputs": record or list of records, "parameters": {"top_k", "exclude",
                "exclude_seen"}}`; see `REQUEST_SCHEMA`.

        Returns:
            See `ANSWER_SCHEMA`. The error of a bad request names what is wrong and where; no answer
            shows the program's internals.
        """
        try:
            self._check(data)
            return self._recommend(data["inputs"], **(data.get("parameters") or {}))
        except _BadRequestError as error:
            return _error("bad_request", str(error), error.field)
        except Exception as error:
            field = _field(error, data["inputs"]) if isinstance(error, ValueError) else None
            if field is not None:
                return _error("bad_request", str(error), field)
            # The log is the owner's; the answer is public.
            logger.error("a request failed", exc_info=error)
            return _error("internal_error", "the request could not be answered", None)

    def _check(self, data: Any) -> None:
        """Check what the pipeline does not: the request's form, and that it is not too large."""
        if not isinstance(data, dict) or "inputs" not in data:
            raise _BadRequestError('a request must be an object: {"inputs": {...}}', "inputs")
        _check_names(data, REQUEST_SCHEMA["properties"], "a request has no field", "")
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(inputs, dict | list):
            raise _BadRequestError("inputs must be an object or a list of objects", "inputs")
        if isinstance(inputs, list) and len(inputs) > MOST_RECORDS:
            raise _BadRequestError(
                f"inputs may be {MOST_RECORDS} records at most, got {len(inputs)}; send several "
                "requests",
                "inputs",
            )
        if not isinstance(parameters, dict):
            raise _BadRequestError("parameters must be an object", "parameters")
        known = REQUEST_SCHEMA["properties"]["parameters"]["properties"]
        _check_names(parameters, known, "there is no parameter", "parameters.")
        top_k, most = parameters.get("top_k", 1), self._most_items
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= most:
            raise _BadRequestError(
                f"top_k must be a whole number from 1 to {most}, got {top_k!r:.80}",
                "parameters.top_k",
            )
        n_records = len(inputs) if isinstance(inputs, list) else 1
        if n_records * top_k > MOST_ANSWERED:
            raise _BadRequestError(
                f"{n_records} records times top_k {top_k} may be {MOST_ANSWERED} at most; send "
                "several requests",
                "parameters.top_k",
            )
        if not isinstance(parameters.get("exclude", []), list):
            raise _BadRequestError("exclude must be a list of item keys", "parameters.exclude")
        if not isinstance(parameters.get("exclude_seen", True), bool):
            raise _BadRequestError("exclude_seen must be true or false", "parameters.exclude_seen")


class _BadRequestError(Exception):
    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def _check_names(given: dict[Any, Any], known: dict[str, Any], problem: str, prefix: str) -> None:
    for name in given:
        if name not in known:
            raise _BadRequestError(
                f"{problem} {name!r}; known: {', '.join(known)}", f"{prefix}{name}"
            )


def _field(error: ValueError, inputs: Any) -> str | None:
    """Return what in the request the pipeline found wrong, None if it is not the request."""
    parameter, row, column = (getattr(error, name, None) for name in ("parameter", "row", "column"))
    if parameter is None:
        return None
    if parameter != "inputs":
        return f"parameters.{parameter}"
    record = "inputs" if row is None or isinstance(inputs, dict) else f"inputs[{row}]"
    return record if column is None else f"{record}.{column}"


def _error(kind: str, message: str, field: str | None) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message[:_LONGEST_MESSAGE], "field": field}}
